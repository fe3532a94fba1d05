"""Splits frames into the patches that Qwen's vision tower reads, as its video processor does.

The processor itself needs torchvision. Tests compare the two if torchvision is installed, and compare single frames
with the processor's Pillow variant everywhere.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from vidchat.tokenizers.weights import TokenizerError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images; Qwen uses them too
STD = (0.26862954, 0.26130258, 0.27577711)


def fitted_size(size: tuple[int, int], factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the nearest (height, width) in multiples of `factor` with `min_pixels` to `max_pixels` pixels.

    Raises:
        TokenizerError: one side is more than 200 times the other.
    """
    height, width = size
    if max(size) > 200 * min(size):
        raise TokenizerError(
            f"frames of {height}x{width} are too narrow for the thinker; the sides may differ by a factor of 200"
        )
    fitted = round(height / factor) * factor, round(width / factor) * factor
    if fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in size)  # type: ignore[return-value]
    if fitted[0] * fitted[1] < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * grow / factor) * factor for side in size)  # type: ignore[return-value]
    return fitted


def resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes uint8 frames (N, 3, H, W) to (N, 3, *size), bicubic, on the CPU, which supports uint8 directly."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.interpolate(frames.cpu(), size=size, mode="bicubic", antialias=True)


def patchify(frames: Tensor, patch: int, merge: int, span: int) -> tuple[Tensor, Tensor]:
    """Normalises frames and splits them into patches.

    Args:
        frames: Frames (N, 3, H, W) uint8; H and W are multiples of patch * merge. The last frame is repeated until N is
            a multiple of `span`.
        patch: Pixels along one side of a patch.
        merge: Patches along one side of the square that the tower merges into one token; they are adjacent in the
            order.
        span: Frames in one patch.

    Returns:
        The patches, pixel_values_videos (T*h*w, 3*span*patch*patch) float32, and their grid, video_grid_thw (1, 3) with
        the values T, h, w.
    """
    missing = -len(frames) % span
    frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    values = (frames.float() - 255 * mean) / (255 * std)
    grid = len(values) // span, values.shape[2] // patch, values.shape[3] // patch
    patches = rearrange(
        values, "(t s) c (h m p) (w n q) -> (t h w m n) (c s p q)", s=span, m=merge, n=merge, p=patch, q=patch
    )
    return patches, torch.tensor([grid])
