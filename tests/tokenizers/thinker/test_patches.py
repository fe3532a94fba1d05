"""Patches compared with the processors of transformers: Pillow's for images, and the video processor (torchvision)."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vidchat.tokenizers.thinker.patches import fitted_size, patchify, resize
from vidchat.tokenizers.weights import TokenizerError

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 12 * 28 * 28


def frames(count: int, height: int = 60, width: int = 90) -> torch.Tensor:
    """Frames with smooth gradients and noise, so that a wrong resizing is visible."""
    rough = torch.randint(256, (count, 3, height, width))
    smooth = torch.linspace(0, 255, width).expand(count, 3, height, width)
    return ((rough + 3 * smooth) / 4).to(torch.uint8)


def ours(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    size = fitted_size((clip.shape[2], clip.shape[3]), 28, MIN_PIXELS, MAX_PIXELS)
    return patchify(resize(clip, size), 14, 2, 2)


@pytest.mark.parametrize("size", [(60, 90), (480, 768), (768, 480), (20, 30), (28, 28), (600, 33), (1080, 1920)])
def test_sizes_equal_the_processor_s(size: tuple[int, int]) -> None:
    assert fitted_size(size, 28, MIN_PIXELS, MAX_PIXELS) == tuple(smart_resize(*size, 28, MIN_PIXELS, MAX_PIXELS))


def test_too_narrow_frames_are_refused() -> None:
    with pytest.raises(TokenizerError, match="too narrow"):
        fitted_size((10, 2010), 28, MIN_PIXELS, MAX_PIXELS)


def test_a_static_clip_gives_the_patches_of_the_image() -> None:
    """The image processor repeats an image to fill a temporal patch, like a clip of the same frame once or twice."""
    frame = frames(1, 84, 56)  # a size that needs no resizing, which is compared below
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    theirs = processor(frame[0].numpy(), return_tensors="pt", input_data_format="channels_first")
    for clip in (frame, frame.repeat(2, 1, 1, 1)):
        patches, grid = ours(clip)
        assert torch.equal(grid, theirs["image_grid_thw"])
        torch.testing.assert_close(patches, theirs["pixel_values"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (480, 300), (20, 30)])
def test_resizing_equals_pillow_s_to_one_level(height: int, width: int) -> None:
    frame = frames(1, height, width)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    theirs = processor(frame[0].numpy(), return_tensors="pt", input_data_format="channels_first")
    patches, grid = ours(frame)
    assert torch.equal(grid, theirs["image_grid_thw"])
    level = 1 / 255 / 0.26
    assert (patches - theirs["pixel_values"]).abs().max() < 1.01 * level


def test_frames_are_in_order_of_time() -> None:
    clip = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 56, 28) * 50
    patches, grid = patchify(clip, 14, 2, 2)
    assert grid.tolist() == [[3, 4, 2]]
    values = patches.view(3, 8, 3, 2, 196)  # time, positions, colours, frames of a patch, pixels
    levels = (values[:, :, 0] * 0.26862954 + 0.48145466) * 255
    expected = torch.tensor([[0.0, 50], [100, 150], [200, 200]])  # the last frame is repeated
    torch.testing.assert_close(levels, expected[:, None, :, None].expand_as(levels), atol=1e-2, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="Qwen's video processor needs torchvision")
@pytest.mark.parametrize(("count", "height", "width"), [(4, 60, 90), (5, 480, 300), (1, 20, 30), (2, 84, 56)])
def test_patches_equal_the_video_processor_s(count: int, height: int, width: int) -> None:
    from transformers import Qwen2VLVideoProcessor

    clip = frames(count, height, width)
    processor = Qwen2VLVideoProcessor(size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS})
    theirs = processor([np.asarray(clip)], return_tensors="pt")
    patches, grid = ours(clip)
    assert torch.equal(grid, theirs["video_grid_thw"])
    torch.testing.assert_close(patches, theirs["pixel_values_videos"], atol=1e-5, rtol=0)
