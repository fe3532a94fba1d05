"""Memory that loader processes reuse: never while the trainer still has it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from vidchat.data.loading.shared_buffers import LEAST, SLOTS, SharedBufferPool


@dataclass
class Batch:
    values: Tensor
    few: Tensor
    where: Tensor  # of its memory in the process that made it


class Numbers(IterableDataset):
    """Batch k holds k everywhere, and is larger now and then."""

    def __init__(self) -> None:
        self.buffers = SharedBufferPool()

    def __iter__(self) -> Any:
        worker = get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        while True:
            values = self.buffers.empty((LEAST // 4 + 10_000 * (number % 3), 1), torch.float32)
            values.fill_(number)
            where = torch.tensor([values.data_ptr()])
            yield self.buffers.to_trainer(Batch(values, torch.tensor([number]), where))
            number += step


def batches(workers: int) -> Any:
    return iter(DataLoader(Numbers(), batch_size=None, num_workers=workers))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_what_is_held_never_changes(workers: int) -> None:
    held = []
    for k, batch in enumerate(islice(batches(workers), 40)):
        assert isinstance(batch, Batch)
        assert bool((batch.values == k).all())
        if k % 3 == 0:
            held.append((k, batch.values[:7]))  # part of it is enough to keep all of it
    assert all(bool((part == k).all()) for k, part in held)


def test_more_than_there_are_slots_can_be_held() -> None:
    held = list(islice(batches(1), SLOTS + 5))
    assert [float(batch.values[-1]) for batch in held] == list(range(SLOTS + 5))


def test_what_is_let_go_is_used_again() -> None:
    places = set()
    for batch in islice(batches(1), 60):
        places.add(int(batch.where))
        del batch
    assert len(places) < 10
