"""The check that weights are finite, which is made wherever weights are written or read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Returns which tensor holds a NaN or an infinity, and in how many values, in words; `None` if all are finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            return f"{name} is not finite in {count} of {value.numel()} values"
    return None
