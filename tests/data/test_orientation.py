from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oddities import MATRICES, corners, names, shoot, stored, with_matrix
from PIL import Image

from vidchat.data.media.read import crop_frames, frame_size, is_wide, read_clip, read_image
from vidchat.dialogue import Clip


@pytest.mark.parametrize("orientation", MATRICES)
def test_videos_of_every_display_matrix_are_read_upright(tmp_path: Path, orientation: int) -> None:
    path = with_matrix(shoot(tmp_path / "a.mp4", [stored(corners(), orientation)] * 3), orientation)
    clip = Clip(path, "ann")
    media = read_clip(clip, fps=25, size=(32, 64), sample_rate=16000, audio=False)
    assert names(media.frames[0].numpy()) == "RGBY"
    assert names(read_image(path, (32, 64)).numpy()) == "RGBY"
    assert frame_size(path) == (32, 64)
    assert is_wide(path)
    full = next(crop_frames(clip, (0, 0, 1, 1), 25, None))
    assert full.shape == (3, 32, 64)
    assert names(full) == "RGBY"
    right = next(crop_frames(clip, (0.5, 0, 1, 0.5), 25, 16))
    assert right.shape == (3, 8, 16)
    assert names(right) == "GGGG"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", MATRICES)
def test_images_of_every_exif_orientation_are_read_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(stored(corners(), orientation))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    image.save(path, exif=exif, quality=95)
    assert names(read_image(path, (32, 64)).numpy()) == "RGBY"
    assert names(read_clip(Clip(path, ""), fps=25, size=(32, 64), sample_rate=1, audio=False).frames[0].numpy()) == (
        "RGBY"
    )
    assert frame_size(path) == (32, 64)


def test_a_frame_of_any_orientation_is_cropped_at_its_centre(tmp_path: Path) -> None:
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = (30, 180, 30)
    for orientation in MATRICES:
        path = with_matrix(shoot(tmp_path / "a.mp4", [stored(wide, orientation)] * 2), orientation)
        assert names(read_image(path, (32, 32)).numpy()) == "GGGG"
