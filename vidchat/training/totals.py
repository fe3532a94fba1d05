"""Sums over a step's micro-batches and ranks: counts, and losses weighted by them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from vidchat.runtime.distributed import sum_over_ranks


class Totals:
    """Means over the micro-batches and ranks of a step, weighted by the number of items that each loss is a mean over.

    With equal weights a chunk of a short clip would count more than a chunk of a long one. Nothing here waits for the
    device, and a single micro-batch on one rank keeps its values bit for bit.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, count: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Adds a micro-batch: a scalar count and scalar losses, with the same names each time."""
        self._parts.append((count.detach().float(), {name: value.detach() for name, value in losses.items()}))

    def gather(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the scalar count and means of the losses over all micro-batches added on all ranks, and resets.

        Every rank must call it, with at least one micro-batch.
        """
        parts, self._parts = self._parts, []
        if len(parts) == 1 and not dist.is_initialized():
            return parts[0]
        names = list(parts[0][1])
        counts = torch.stack([count for count, _ in parts])[:, None]
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for _, losses in parts])
        # A micro-batch with count 0 adds nothing, even if its loss is NaN.
        weighted = torch.where(counts > 0, values * counts, 0.0)
        count, *sums = sum_over_ranks(torch.cat([counts, weighted], dim=1).sum(0)).unbind()
        return count, dict(zip(names, [value / count.clamp(min=1) for value in sums], strict=True))
