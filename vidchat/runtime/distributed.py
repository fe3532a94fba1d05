"""Communication between the processes that train together (ranks); in a single process each is the identity."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def rank_count() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(value: Tensor) -> Tensor:
    """Returns the sum of all ranks' tensors of one shape, bit-identical on every rank. Every rank must call it.

    Changes `value` in place; with NCCL the host does not wait.
    """
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def gather_over_ranks(value: Tensor) -> Tensor:
    """Returns all ranks' tensors (n, ...) of one shape, concatenated in the order of ranks: (ranks * n, ...)."""
    if not dist.is_initialized():
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def copy_from_first_rank(values: Iterable[Tensor]) -> None:
    """Overwrites every rank's tensors with those of rank 0."""
    if dist.is_initialized():
        for value in values:
            dist.broadcast(value.detach(), 0)
