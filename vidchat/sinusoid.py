"""Sine and cosine features of numbers: times, noise levels, scores."""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoid(values: Tensor, size: int, period: float = 10_000.0) -> Tensor:
    """Returns sine and cosine features (..., size) of values (...), as for diffusion times."""
    half = size // 2
    frequencies = period ** (-torch.arange(half, device=values.device).float() / half)
    angles = values.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
