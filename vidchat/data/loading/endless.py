"""A training stream that never ends, and of which batch k is a pure function of the seed and k.

So resuming is starting at k, exactly, whatever the number of workers; nothing of a worker's state need be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from vidchat.data.folder import FolderError
from vidchat.data.loading.order import Order, generator_for

log = logging.getLogger(__name__)
Draw = tuple[int, torch.Generator]  # an item's index, and the generator of every random choice made for it
Make = Callable[[list[Draw]], Any]  # draws to a batch


class Endless(IterableDataset):
    """Batches k = start, start + 1, ... for ever; of W workers, the w-th makes start + w, start + w + W, ...

    Args:
        make: Draws to a batch; looks at nothing else that changes.
        order: Which items are drawn for batch k.
        batch_size: Draws in a batch of one rank.
        start: The first batch.
        rank: This process among `ranks`.
        ranks: Processes that train together.
    """

    def __init__(
        self, make: Make, order: Order, batch_size: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.make, self.order, self.batch_size = make, order, batch_size
        self.start, self.rank, self.ranks = start, rank, ranks

    def batch(self, k: int) -> Any:
        """Batch k of this rank."""
        places = self.order.batch(k, self.batch_size, self.rank, self.ranks)
        return self.make([(p.item, generator_for(self.order.seed, "draw", p.where)) for p in places])

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        k = self.start + first
        while True:
            yield self.batch(k)
            k += step


class Fixed(Dataset):
    """Given batches of items, each item drawn the same way every time."""

    def __init__(self, make: Make, batches: Sequence[Sequence[int]], seed: int) -> None:
        self.make, self.batches, self.seed = make, batches, seed

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Any:
        return self.make([(item, generator_for(self.seed, "fixed", item)) for item in self.batches[k]])


def in_order(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Every item once, in order, in batches, of which the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


class EndlessDataModule(L.LightningDataModule):
    """Loads endless training batches and fixed validation batches, and knows how many of the former were trained on.

    A subclass has `train` (make, order) and `val` (make, batches) after `setup`, or `None`.
    """

    train: tuple[Make, Order] | None = None
    val: tuple[Make, Sequence[Sequence[int]]] | None = None

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.consumed = 0  # batches handed to the training step, not those that workers have made ahead

    def train_dataloader(self) -> DataLoader:
        """Endless batches of the split `train`, from the first that was not trained on."""
        if self.train is None:
            raise FolderError('the data set has no usable clip of the split \'train\'; give some "split": "train"')
        rank = self.trainer.global_rank if self.trainer is not None else 0
        return self._loader(Endless(*self.train, self.batch_size, self.consumed, rank, self.ranks))

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.trainer.world_size if self.trainer is not None else 1

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Each item of the split `val` once, in order; no loader where validation is off and the split is empty."""
        if self.val is None:
            if self.trainer is not None and self.trainer.limit_val_batches == 0:
                return []
            raise FolderError(
                'the data set has no usable clip of the split \'val\'; give some dialogues "split": "val", or set '
                "trainer.limit_val_batches=0 to train without validation"
            )
        return self._loader(Fixed(*self.val, self.seed))

    def _loader(self, dataset: Dataset) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: a loader that draws from the global one would change what training draws.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Counts a batch when training takes it; Lightning calls this right before the training step."""
        if self.trainer is not None and self.trainer.training:
            self.consumed += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what decides its batches."""
        state = {"consumed": self.consumed, "seed": self.seed, "batch_size": self.batch_size, "ranks": self.ranks}
        return state | ({} if self.train is None else {"order": self.train[1].fingerprint()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run stood, exactly; says so where that cannot be exact.

        Raises:
            ValueError: Its batches were other batches.
        """
        if state_dict["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint was made with seed={state_dict['seed']}, not {self.seed}, so its batches cannot be "
                f"continued; set seed={state_dict['seed']}"
            )
        ranks = state_dict.get("ranks", self.ranks)
        before, now = ranks * state_dict["batch_size"], self.ranks * self.batch_size
        if before != now and ranks == self.ranks:
            raise ValueError(
                f"the checkpoint was made with data.batch_size={state_dict['batch_size']}, not {self.batch_size}, so "
                f"its batches cannot be continued; set data.batch_size={state_dict['batch_size']}"
            )
        self.consumed = state_dict["consumed"]
        if ranks != self.ranks:
            self._change_ranks(ranks, before, now)
        ours = None if self.train is None else self.train[1].fingerprint()
        if ours is not None and state_dict.get("order", ours) != ours:
            rank_zero_warn(
                "the data set, its mix or its lengths are not those of the checkpoint: training goes on at batch "
                f"{self.consumed} of the new order, in which answers may come again or be left out"
            )

    def _change_ranks(self, ranks: int, before: int, now: int) -> None:
        """Says what another number of ranks means; the same number of answers counts as consumed."""
        told = f"the checkpoint was made with {ranks} ranks of {before // ranks} answers, and this run has {self.ranks}"
        if before == now:
            rank_zero_warn(f"{told} of {self.batch_size}: every batch of all ranks together holds the same answers")
            return
        consumed = self.consumed * before
        self.consumed = round(consumed / now)
        rank_zero_warn(
            f"{told} of {self.batch_size}: resuming is not exact. Training goes on after {self.consumed * now} answers "
            f"({consumed} were consumed), in other batches; a few thousand answers may come again or be left out"
        )
