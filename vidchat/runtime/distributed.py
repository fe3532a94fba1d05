"""What the processes that train together (ranks) tell each other; alone, each function gives back what it is given."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of all ranks' values of one shape, the same bits on every rank. Every rank must call it.

    Changes `value` in place; with NCCL the host does not wait.
    """
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather_over_ranks(value: Tensor) -> Tensor:
    """All ranks' values (n, ...) of one shape, one below the other in the ranks' order: (ranks * n, ...)."""
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def copy_from_first_rank(values: Iterable[Tensor]) -> None:
    """Overwrites every rank's values with those of rank 0."""
    if dist.is_initialized():
        for value in values:
            dist.broadcast(value.detach(), 0)
