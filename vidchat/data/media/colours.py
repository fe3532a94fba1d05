"""The colours of a decoded frame as standard-range RGB: HDR tone-mapped, transparency over grey.

The matrix and the range are those that the frame names (swscale applies them); a frame that names none is BT.601 in
limited range, whatever its size.
"""

from __future__ import annotations

import numpy as np
from av import VideoFrame
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter

GREY = 128  # what lies behind transparent frames and images
MOST_PIXELS = 1 << 27  # of a frame or an image: 134 million
WHITE = 203.0  # cd/m2 of the white that SDR shows as 255 (ITU-R BT.2408)
HLG_PEAK, PQ_PEAK = 1000.0, 10000.0  # cd/m2
KNEE = 0.85  # of the white, above which highlights are compressed
TO_BT709 = np.array(  # linear RGB of BT.2020's primaries to those of BT.709 (ITU-R BT.2087)
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_rgb(frame: VideoFrame, height: int, width: int, reformatter: VideoReformatter) -> np.ndarray:
    """A frame scaled to (height, width), as stored: (height, width, 3) uint8 RGB.

    Args:
        frame: The decoded frame, of any pixel format.
        height: Rows of the result.
        width: Columns of the result.
        reformatter: Kept from frame to frame, as making one is slow.

    Raises:
        ValueError: The scaled frame would have more than `MOST_PIXELS` pixels.
    """
    if height * width > MOST_PIXELS:
        raise ValueError(f"its shape of {frame.height}x{frame.width} would have to be scaled to {height}x{width}")
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
    """(H, W, 4) uint8 with straight alpha over a grey background: (H, W, 3) uint8."""
    if (rgba[..., 3] == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.rint(rgba[..., :3] * alpha + GREY * (1 - alpha)).astype(np.uint8)


def tone_mapped(signal: np.ndarray, hlg: bool) -> np.ndarray:
    """HDR to what an SDR screen shows: the reference white of 203 cd/m2 becomes white, highlights are compressed.

    The system gamma of HLG acts on each channel, as that of SDR cameras does, so that SDR that was packed into HLG
    comes back.

    Args:
        signal: (H, W, 3) uint16, R'G'B' of BT.2020's primaries in full range.
        hlg: Whether it is HLG (ARIB STD-B67); else it is PQ (SMPTE ST 2084).
    """
    levels = np.minimum(signal.astype(np.float32) / 0xFF00, 1)  # swscale's white of 48 bit RGB
    light = (_light_of_hlg(levels) if hlg else _light_of_pq(levels)) / WHITE
    shown = np.maximum(light @ TO_BT709.T, 0)
    bright = shown > KNEE
    shown[bright] = KNEE + (1 - KNEE) * -np.expm1((KNEE - shown[bright]) / (1 - KNEE))
    return np.rint(255 * shown ** (1 / 2.4)).astype(np.uint8)


def _light_of_hlg(levels: np.ndarray) -> np.ndarray:
    """HLG's levels in [0, 1] to cd/m2 on a screen of 1000 cd/m2 (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
    return HLG_PEAK * scene**1.2


def _light_of_pq(levels: np.ndarray) -> np.ndarray:
    """PQ's levels in [0, 1] to cd/m2 (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = levels ** (1 / m2)
    return PQ_PEAK * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
