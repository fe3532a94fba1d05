"""Three-axis rotary positions (time, row, column).

Text tokens have the same position on all three axes, which makes these the ordinary rotary positions of a language
model (RoPE, arXiv 2104.09864; three axes as in Qwen2-VL, arXiv 2409.12191).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Axis of each rotary frequency, repeated over the frequencies from fast to slow: time gets half of them, and every axis
# gets fast and slow ones.
_AXES = (0, 1, 0, 2)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of position[axis of i] * theta^(-i / half) for pairs i < half of a head's values.

    Args:
        positions: (B, N, 3): time in 40 ms steps, row, column; float64 keeps the angles of hours exact.
        head_dim: Size of one attention head, even.
        theta: Base of the frequencies.

    Returns:
        Two (B, 1, N, head_dim) float32 tensors for `rotate`; the sines of the first half are negated.
    """
    half = head_dim // 2
    index = torch.arange(half, device=positions.device)
    frequencies = theta ** (-index.float() / half)
    # Stacked, not indexed: an index would be copied to the device, and the copy waits for all work before it.
    positions = positions if positions.dtype == torch.float64 else positions.float()
    by_axis = torch.stack([positions[..., axis] for axis in _AXES], dim=-1)
    per_frequency = by_axis.repeat(1, 1, -(-half // len(_AXES)))[..., :half]
    angles = (per_frequency * frequencies).unsqueeze(1)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates queries or keys (B, heads, N, head_dim) by their angles, two (B, 1, N, head_dim) tensors."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin).to(x.dtype)
