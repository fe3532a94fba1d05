"""Shared memory that a loader's process fills again and again, once the training process is done with it.

A batch goes from the process that makes it to the one that trains on it in memory that both see. Fresh memory of that
kind costs ten times what filling it costs, since the system has to find, clear and map each page when it is first
touched. So a loader's process keeps what it has handed over, and uses it again when the training process has let go.
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

SLOTS = 32  # of one process: tensors that it keeps
PAGE = 4096
LEAST = 1 << 18  # bytes from which on it is worth it


class SharedBufferPool:
    """Tensors for batches; each of a loader's processes lends memory of its own."""

    def __init__(self) -> None:
        self._lent: Tensor | None = None  # (SLOTS,) uint8, which both processes see; 1: the trainer has it
        self._slots: dict[int, torch.UntypedStorage] = {}
        self._handed: list[int] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content; in a loader's process, in memory that the training process sees too."""
        size = math.prod(shape) * dtype.itemsize
        if get_worker_info() is None or size < LEAST:
            return torch.empty(shape, dtype=dtype)
        if self._lent is None:
            self._lent = torch.zeros(SLOTS, dtype=torch.uint8).share_memory_()
        slot = self._slot(self._lent, size)
        storage = torch.UntypedStorage._new_shared(size) if slot is None else self._slots[slot]
        if slot is not None:
            self._lent[slot] = 1
            self._handed.append(slot)
        return torch.empty(0, dtype=dtype).set_(storage)[: math.prod(shape)].view(shape)

    def _slot(self, lent: Tensor, size: int) -> int | None:
        """A slot that is free and large enough; `None` if the trainer keeps all of them."""
        free = torch.nonzero(lent == 0).flatten().tolist()
        fitting = [slot for slot in free if slot in self._slots and self._slots[slot].nbytes() >= size]
        if fitting:
            return min(fitting, key=lambda slot: self._slots[slot].nbytes())
        unused = [slot for slot in free if slot not in self._slots] or free
        if unused:  # larger than need be, as the next batch may be larger
            self._slots[unused[0]] = torch.UntypedStorage._new_shared(-(-size * 9 // 8 // PAGE) * PAGE)
        return unused[0] if unused else None

    def to_trainer(self, batch: Any) -> Any:
        """A batch made of this lender's tensors, ready to be sent: it arrives as the batch itself."""
        handed, self._handed = self._handed, []
        return PooledBatch(batch, self._lent, handed) if handed else batch


class PooledBatch:
    """A batch on its way."""

    def __init__(self, batch: Any, lent: Tensor | None, slots: list[int]) -> None:
        self.batch, self.lent, self.slots = batch, lent, slots

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.batch, self.lent, self.slots)


_held: list[tuple[list[StorageWeakRef], Tensor, list[int]]] = []  # of batches that have arrived in this process


def _arrive(batch: Any, lent: Tensor, slots: list[int]) -> Any:
    """Gives back what this process has let go of, and notes what it now has."""
    for one in list(_held):
        storages, theirs, numbers = one
        if all(storage.expired() for storage in storages):
            theirs[numbers] = 0
            _held.remove(one)
    _held.append(([StorageWeakRef(tensor.untyped_storage()) for tensor in _tensors(batch)], lent, slots))
    return batch


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a batch, however deep."""
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, dict) else vars(value).values() if is_dataclass(value) else ():
        yield from _tensors(part)
