"""Shared memory that a loader process reuses once the training process has released it.

A batch goes from the process that makes it to the one that trains on it in shared memory. Fresh shared memory costs ten
times what filling it costs, since the system has to find, clear and map each page when it is first touched. So a loader
process keeps the memory of the batches it has sent, and reuses it when the training process has released it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import get_worker_info

SLOTS = 32  # tensors that a process keeps
PAGE = 4096
LEAST = 1 << 18  # bytes of the smallest tensor that is worth it


class SharedBufferPool:
    """Tensors for batches; each loader process has a pool of its own."""

    def __init__(self) -> None:
        self._lent: Tensor | None = None  # (SLOTS,) uint8, shared by both processes; 1: the trainer has it
        self._slots: dict[int, torch.UntypedStorage] = {}
        self._sent: list[int] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Returns an uninitialised tensor; in a loader process, in memory shared with the training process."""
        size = math.prod(shape) * dtype.itemsize
        if get_worker_info() is None or size < LEAST:
            return torch.empty(shape, dtype=dtype)
        if self._lent is None:
            self._lent = torch.zeros(SLOTS, dtype=torch.uint8).share_memory_()
        slot = self._slot(self._lent, size)
        storage = torch.UntypedStorage._new_shared(size) if slot is None else self._slots[slot]
        if slot is not None:
            self._lent[slot] = 1
            self._sent.append(slot)
        return torch.empty(0, dtype=dtype).set_(storage)[: math.prod(shape)].view(shape)

    def _slot(self, lent: Tensor, size: int) -> int | None:
        """Returns a slot that is free and large enough; `None` if the trainer has all of them."""
        free = torch.nonzero(lent == 0).flatten().tolist()
        fitting = [slot for slot in free if slot in self._slots and self._slots[slot].nbytes() >= size]
        if fitting:
            return min(fitting, key=lambda slot: self._slots[slot].nbytes())
        unused = [slot for slot in free if slot not in self._slots] or free
        if unused:  # an eighth larger, as the next batch may be larger
            self._slots[unused[0]] = torch.UntypedStorage._new_shared(-(-size * 9 // 8 // PAGE) * PAGE)
        return unused[0] if unused else None

    def to_trainer(self, batch: Any) -> Any:
        """Wraps a batch of this pool's tensors to be sent; it arrives as the batch itself."""
        sent, self._sent = self._sent, []
        return PooledBatch(batch, self._lent, sent) if sent else batch


class PooledBatch:
    """A batch that is being sent, and the slots of its tensors."""

    def __init__(self, batch: Any, lent: Tensor | None, slots: list[int]) -> None:
        self.batch, self.lent, self.slots = batch, lent, slots

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.batch, self.lent, self.slots)


_held: list[tuple[list[StorageWeakRef], Tensor, list[int]]] = []  # tensors of batches that arrived in this process


def _arrive(batch: Any, lent: Tensor, slots: list[int]) -> Any:
    """Releases the slots of batches that this process has freed, and notes those of this batch."""
    for held in list(_held):
        storages, theirs, numbers = held
        if all(storage.expired() for storage in storages):
            theirs[numbers] = 0
            _held.remove(held)
    _held.append(([StorageWeakRef(tensor.untyped_storage()) for tensor in _tensors(batch)], lent, slots))
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in a batch, however deep."""
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, dict) else vars(value).values() if is_dataclass(value) else ():
        yield from _tensors(part)
