"""Conversion of frames between uint8 (files) and [-1, 1] (models)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(frames: Tensor) -> Tensor:
    """Converts frames in [-1, 1], of any shape, to uint8 on the CPU."""
    return ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def from_bytes(frames: Tensor) -> Tensor:
    """Converts uint8 frames (N, 3, H, W) to the tokenizers' (1, 3, N, H, W) in [-1, 1]."""
    return (frames.float() / 127.5 - 1).transpose(0, 1)[None]
