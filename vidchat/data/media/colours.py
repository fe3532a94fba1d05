"""Conversion of a decoded frame to SDR RGB: HDR is tone-mapped, transparency is blended over grey.

swscale applies the matrix and the range that the frame names; a frame that names none is read as BT.601 in limited
range, whatever its size.
"""

from __future__ import annotations

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter

GREY = 128  # background of transparent frames and images
MOST_PIXELS = 1 << 27  # largest frame or image: 134 million pixels
WHITE = 203.0  # cd/m2; the white that SDR shows as 255 (ITU-R BT.2408)
HLG_PEAK, PQ_PEAK = 1000.0, 10000.0  # cd/m2
KNEE = 0.85  # share of the white above which highlights are compressed
TO_BT709 = np.array(  # linear RGB, BT.2020 primaries to BT.709 primaries (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_rgb(frame: VideoFrame, height: int, width: int, reformatter: VideoReformatter) -> np.ndarray:
    """Returns a frame scaled to (height, width), in its stored orientation: (height, width, 3) uint8 RGB.

    Args:
        frame: Decoded frame of any pixel format.
        height: Height of the result.
        width: Width of the result.
        reformatter: Scaler, reused from frame to frame because creating one is slow.

    Raises:
        ValueError: The scaled frame would have more than `MOST_PIXELS` pixels.
    """
    if height * width > MOST_PIXELS:
        raise ValueError(f"its {frame.height}x{frame.width} pixels would be scaled to {height}x{width}; crop it")
    if frame.color_trc in (ColorTrc.ARIB_STD_B67, ColorTrc.SMPTE2084):
        scaled = _scaled(frame, height, width, "rgb48le", reformatter)
        return tone_mapped(scaled, hlg=frame.color_trc == ColorTrc.ARIB_STD_B67)
    if frame.format.has_palette or any(component.is_alpha for component in frame.format.components):
        opaque = over_grey(frame.reformat(format="rgba", threads=1).to_ndarray())
        frame = VideoFrame.from_ndarray(opaque, format="rgb24")
    return _scaled(frame, height, width, "rgb24", reformatter)


def _scaled(frame: VideoFrame, height: int, width: int, kind: str, reformatter: VideoReformatter) -> np.ndarray:
    return reformatter.reformat(
        frame, width, height, kind, interpolation=Interpolation.BICUBIC, threads=1
    ).to_ndarray()  # fmt: skip


def over_grey(rgba: np.ndarray) -> np.ndarray:
    """Blends (H, W, 4) uint8 with straight alpha over a grey background: (H, W, 3) uint8."""
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + GREY * (1 - alpha)).astype(np.uint8)


def tone_mapped(signal: np.ndarray, hlg: bool) -> np.ndarray:
    """Maps HDR to SDR, (H, W, 3) uint8: the reference white of 203 cd/m2 becomes white, highlights are compressed.

    The system gamma of HLG is applied per channel, as SDR cameras apply theirs, so that SDR converted to HLG is
    recovered.

    Args:
        signal: R'G'B' with BT.2020 primaries in full range, (H, W, 3) uint16.
        hlg: Whether the transfer function is HLG (ARIB STD-B67); else it is PQ (SMPTE ST 2084).
    """
    levels = np.minimum(signal.astype(np.float32) / 0xFF00, 1)  # white of swscale's 48-bit RGB
    light = (_light_of_hlg(levels) if hlg else _light_of_pq(levels)) / WHITE
    shown = np.maximum(light @ TO_BT709.T, 0)
    bright = shown > KNEE
    shown[bright] = KNEE + (1 - KNEE) * -np.expm1((KNEE - shown[bright]) / (1 - KNEE))
    return np.rint(255 * shown ** (1 / 2.4)).astype(np.uint8)


def _light_of_hlg(levels: np.ndarray) -> np.ndarray:
    """Converts HLG levels in [0, 1] to cd/m2 on a display of 1000 cd/m2 (ITU-R BT.2100); any shape."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
    return HLG_PEAK * scene**1.2


def _light_of_pq(levels: np.ndarray) -> np.ndarray:
    """Converts PQ levels in [0, 1] to cd/m2 (SMPTE ST 2084); any shape."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = levels ** (1 / m2)
    return PQ_PEAK * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
