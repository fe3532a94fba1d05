"""What a step's micro-batches and ranks add up to: counts, and the losses weighted by them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from vidchat.runtime.distributed import sum_over_ranks


class Totals:
    """Means over the micro-batches and ranks of a step, each weighted by what its own losses are means over.

    Equal weights would let a chunk of a short clip count more than a chunk of a long one. Nothing here waits for the
    device, and a single micro-batch on one rank keeps its values bit for bit.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, count: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Adds a micro-batch: a scalar count and scalar losses, of the same names each time."""
        self._parts.append((count.detach().float(), {name: value.detach() for name, value in losses.items()}))

    def gather_tokens(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The count and the mean of each loss over all micro-batches added on all ranks; begins anew.

        Every rank must call it, with at least one micro-batch.
        """
        parts, self._parts = self._parts, []
        if len(parts) == 1 and not dist.is_initialized():
            return parts[0]
        names = list(parts[0][1])
        counts = torch.stack([count for count, _ in parts])[:, None]
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for _, losses in parts])
        # What counts for nothing does so even where it is NaN.
        weighted = torch.where(counts > 0, values * counts, 0.0)
        count, *sums = sum_over_ranks(torch.cat([counts, weighted], dim=1).sum(0)).unbind()
        return count, dict(zip(names, [value / count.clamp(min=1) for value in sums], strict=True))
