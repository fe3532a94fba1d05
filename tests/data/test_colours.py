from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from oddities import BLUE, GREEN, RED, YELLOW, corners, names, shoot
from PIL import Image

from vidchat.data.media.colours import GREY, tone_mapped
from vidchat.data.media.read import read_clip, read_image
from vidchat.dialogue import Clip

TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def hdr_signal(sdr: np.ndarray, hlg: bool) -> np.ndarray:
    """Converts SDR levels (..., 3) in [0, 255] to a display-referred HDR signal; white is 203 cd/m2."""
    light = 203 * (np.asarray(sdr, float) / 255) ** 2.4 @ TO_BT2020.T
    if hlg:
        scene = (light / 1000) ** (1 / 1.2)
        high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def first(path: Path, size: tuple[int, int] = (32, 64)) -> np.ndarray:
    media = read_clip(Clip(path, ""), fps=25, size=size, sample_rate=16000, audio=False)
    assert np.array_equal(media.frames[0].numpy(), read_image(path, size).numpy())
    return media.frames[0].numpy().astype(int)


def levels(pixels: np.ndarray) -> list[np.ndarray]:
    height, width = pixels.shape[-2:]
    return [pixels[:, y, x] for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]


@pytest.mark.parametrize("hlg", [True, False])
def test_hdr_is_mapped_to_the_sdr_it_was_made_from(tmp_path: Path, hlg: bool) -> None:
    signal = np.rint(hdr_signal(corners(), hlg) * 0xFF00).astype(np.uint16)
    path = shoot(
        tmp_path / "a.mkv",
        [signal] * 3,
        codec="ffv1",
        kind="yuv420p10le",
        source="rgb48le",
        color_trc=ColorTrc.ARIB_STD_B67 if hlg else ColorTrc.SMPTE2084,
        color_primaries=ColorPrimaries.BT2020,
        colorspace=Colorspace.BT2020,
        color_range=ColorRange.MPEG,
    )
    for seen, expected in zip(levels(first(path)), (RED, GREEN, BLUE, YELLOW), strict=True):
        assert np.abs(seen - expected).max() <= 6


@pytest.mark.parametrize("hlg", [True, False])
def test_tone_mapping_keeps_greys_and_compresses_highlights(hlg: bool) -> None:
    grey = np.array([16, 60, 128, 200, 235, 255])
    signal = np.rint(hdr_signal(np.repeat(grey[:, None], 3, 1), hlg)[None] * 0xFF00).astype(np.uint16)
    seen = tone_mapped(signal, hlg)[0].astype(int)
    assert np.ptp(seen, axis=1).max() <= 1
    assert np.abs(seen[:, 0] - grey).max() <= 7
    ramp = np.linspace(0, 0xFF00, 500).astype(np.uint16)[None, :, None].repeat(3, 2)
    shown = tone_mapped(ramp, hlg)[0, :, 0].astype(int)
    assert (np.diff(shown) >= 0).all()
    assert (shown[0], shown[-1]) == (0, 255)


@pytest.mark.parametrize("space", [Colorspace.ITU709, Colorspace.ITU601, Colorspace.BT2020])
@pytest.mark.parametrize("extent", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("kind", ["yuv420p", "yuv420p10le"])
def test_the_matrix_and_the_range_that_a_file_names_are_used(
    tmp_path: Path, space: Colorspace, extent: ColorRange, kind: str
) -> None:
    path = shoot(
        tmp_path / "a.mkv",
        [corners()] * 2,
        codec="ffv1",
        kind=kind,
        colorspace=space,
        color_range=extent,
        color_trc=ColorTrc.BT709,
    )
    for seen, expected in zip(levels(first(path)), (RED, GREEN, BLUE, YELLOW), strict=True):
        assert np.abs(seen - expected).max() <= 4


def test_hidden_colours_of_a_transparent_image_are_not_read(tmp_path: Path) -> None:
    cutout = np.dstack([corners(), np.zeros((32, 64), np.uint8)])
    cutout[8:24, 16:48] = (*YELLOW, 255)
    for name in ("a.png", "a.webp"):
        Image.fromarray(cutout).save(tmp_path / name, lossless=True, exact=True)
    Image.fromarray(cutout).save(tmp_path / "a.gif", transparency=0, disposal=2)
    Image.fromarray(cutout[..., :3]).quantize(4).save(tmp_path / "p.png", transparency=bytes([0, 0, 0, 0]))
    shoot(tmp_path / "a.mov", [cutout] * 2, codec="png", kind="rgba", source="rgba")
    shoot(tmp_path / "b.mkv", [cutout] * 2, codec="ffv1", kind="yuva444p", source="rgba")
    shoot(tmp_path / "a.webm", [cutout] * 2, codec="libvpx-vp9", kind="yuva420p", source="rgba", bit_rate=1_000_000)
    for name in ("a.png", "a.webp", "a.mov", "b.mkv", "a.webm"):
        seen = first(tmp_path / name)
        assert np.abs(seen[:, 0] - GREY).max() <= 2, name
        assert np.abs(seen[:, 16, 32] - YELLOW).max() <= 3, name
    assert (first(tmp_path / "p.png") == GREY).all()
    half = np.dstack([corners(), np.full((32, 64), 128, np.uint8)])
    Image.fromarray(half).save(tmp_path / "half.png")
    assert np.abs(first(tmp_path / "half.png")[:, 8, 16] - (np.array(RED) + GREY) / 2).max() <= 1


def test_grey_of_16_bits_and_cmyk_are_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(32, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.abs(first(tmp_path / "a.png")[0, 0] - np.linspace(0, 255, 64)).max() <= 3
    Image.fromarray(corners()).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert names(first(tmp_path / "a.jpg")) == "RGBY"
