"""An endless training stream whose batch k is a pure function of the seed and k.

So a resumed run starts at k, exactly, whatever the number of workers; no state of a worker need be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from vidchat.data.folder import FolderError
from vidchat.data.loading.order import Order, generator_for
from vidchat.data.loading.shared_buffers import PooledBatch

log = logging.getLogger(__name__)
Draw = tuple[int, torch.Generator]  # an item's index, and the generator of every random choice made for it
Make = Callable[[list[Draw]], Any]  # makes a batch from draws


class EndlessDataset(IterableDataset):
    """Batches k = start, start + 1, ... without end; of W workers, the w-th makes start + w, start + w + W, ...

    The batches of one optimizer step, accumulated or on several ranks, are shares of one global batch of the order: the
    same answers make a step however it is split.

    Args:
        make: Makes a batch from draws; depends on nothing else that changes.
        order: The items of batch k.
        batch_size: Draws in a batch of one rank.
        start: The first batch.
        rank: This process among `ranks`.
        ranks: Processes that train together.
        accumulated: Batches of one rank in one optimizer step.
    """

    def __init__(
        self,
        make: Make,
        order: Order,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
        accumulated: int = 1,
    ) -> None:
        self.make, self.order, self.batch_size = make, order, batch_size
        self.start, self.rank, self.ranks, self.accumulated = start, rank, ranks, accumulated

    def batch(self, k: int) -> Any:
        """Returns batch k of this rank."""
        step, micro = divmod(k, self.accumulated)
        share = micro * self.ranks + self.rank
        items = self.order.batch(step, self.batch_size, share, self.ranks * self.accumulated)
        return self.make([(drawn.item, generator_for(self.order.seed, "draw", drawn.where)) for drawn in items])

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        k = self.start + first
        while True:
            yield self.batch(k)
            k += step


class FixedDataset(Dataset):
    """Fixed batches of items, each item drawn the same way every time.

    Ranks take the batches in turn, and equally many each, or they would wait for each other for ever: where the number
    of batches does not divide, some ranks end with a batch that counts for nothing.

    Args:
        make: Makes a batch from draws.
        batches: The items of each batch.
        seed: The seed of every random choice.
        rank: This process among `ranks`.
        ranks: Processes that share the batches.
    """

    def __init__(self, make: Make, batches: Sequence[Sequence[int]], seed: int, rank: int = 0, ranks: int = 1) -> None:
        self.make, self.batches, self.seed = make, batches, seed
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return -(-len(self.batches) // self.ranks)

    def __getitem__(self, k: int) -> Any:
        if k >= len(self):
            raise IndexError(f"there are {len(self)} batches, not {k + 1}")
        number = k * self.ranks + self.rank
        counts = number < len(self.batches)
        items = self.batches[number if counts else 0]
        batch = self.make([(item, generator_for(self.seed, "fixed", item)) for item in items])
        return batch if counts else uncounted(batch)


def uncounted(batch: Any) -> Any:
    """Returns the batch as one that counts for nothing: all but the references is padding, or its `count` is 0."""
    if isinstance(batch, PooledBatch):
        batch.batch = uncounted(batch.batch)
        return batch
    if isinstance(batch, dict):
        return batch | {"count": torch.zeros(())}
    return replace(batch, mask=batch.mask & (torch.arange(batch.mask.shape[1]) == 0))


def in_order(items: Sequence[int], size: int) -> list[Sequence[int]]:
    """Returns batches of every item once, in order; the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


class EndlessDataModule(L.LightningDataModule):
    """Loads endless training batches and fixed validation batches, and counts the former that were trained on.

    A subclass has `train` (make, order) and `val` (make, batches) after `setup`, or `None`.
    """

    train: tuple[Make, Order] | None = None
    val: tuple[Make, Sequence[Sequence[int]]] | None = None

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.consumed = 0  # batches handed to the training step, without those that workers have prefetched

    def train_dataloader(self) -> DataLoader:
        """Returns a loader of endless batches of the split `train`, from the first that was not trained on."""
        if self.train is None:
            raise FolderError('the data set has no usable clip of the split \'train\'; give some "split": "train"')
        return self._loader(
            EndlessDataset(*self.train, self.batch_size, self.consumed, self.rank, self.ranks, self.accumulated)
        )

    @property
    def rank(self) -> int:
        """This process among those that train together."""
        return self.trainer.global_rank if self.trainer is not None else 0

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.trainer.world_size if self.trainer is not None else 1

    @property
    def accumulated(self) -> int:
        """Batches of this rank in one optimizer step."""
        return self.trainer.accumulate_grad_batches if self.trainer is not None else 1

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Returns a loader of this rank's share of the split `val`; none if it is empty and validation is off.

        Each item is there once, in order. Where a number of batches is the limit, it is that of all ranks together.
        """
        limit = self.trainer.limit_val_batches if self.trainer is not None else 1.0
        if self.val is None:
            if limit == 0:
                return []
            raise FolderError(
                'the data set has no usable clip of the split \'val\'; give some dialogues "split": "val", or set '
                "trainer.limit_val_batches=0 to train without validation"
            )
        make, batches = self.val
        batches = batches[:limit] if isinstance(limit, int) and limit > 0 else batches
        return self._loader(FixedDataset(make, batches, self.seed, self.rank, self.ranks))

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
        """Returns how many batches were consumed, and what decides the batches."""
        state = {"consumed": self.consumed, "seed": self.seed, "batch_size": self.batch_size, "ranks": self.ranks}
        state["accumulated"] = self.accumulated
        return state | ({} if self.train is None else {"order": self.train[1].fingerprint()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the batches that a run consumed; warns where that cannot be exact.

        Raises:
            ValueError: The seed or the batch size is another, so the batches are too.
        """
        if state_dict["seed"] != self.seed:
            raise ValueError(
                f"the checkpoint was made with seed={state_dict['seed']}, not {self.seed}, so its batches cannot be "
                f"continued; set seed={state_dict['seed']}"
            )
        before = Split.of(state_dict, Split(self.batch_size, self.ranks, self.accumulated))
        now = Split(self.batch_size, self.ranks, self.accumulated)
        if before.size != now.size and before.answers != now.answers and before.ranks == now.ranks:
            raise ValueError(
                f"the checkpoint was made with data.batch_size={before.size}, not {now.size}, so its batches cannot be "
                f"continued; set data.batch_size={before.size}"
            )
        self.consumed = state_dict["consumed"]
        if before != now:
            self._change_split(before, now)
        ours = None if self.train is None else self.train[1].fingerprint()
        if ours is not None and state_dict.get("order", ours) != ours:
            rank_zero_warn(
                "the data set, its mix or its lengths are not those of the checkpoint: training goes on at batch "
                f"{self.consumed} of the new order, in which answers may come again or be left out"
            )

    def _change_split(self, before: Split, now: Split) -> None:
        """Warns what another split of a step's answers means; the same number of answers counts as consumed."""
        ranks, answers = ("rank" if before.ranks == 1 else "ranks"), ("answer" if before.size == 1 else "answers")
        change = (
            f"the checkpoint was made with {before.ranks} {ranks} of {before.size} {answers}{before.times}, and this "
            f"run has {now.ranks} of {now.size}{now.times}"
        )
        consumed = self.consumed // before.accumulated * before.answers
        steps = round(consumed / now.answers)
        self.consumed = steps * now.accumulated
        if before.answers == now.answers:
            rank_zero_warn(f"{change}: every batch of all ranks together holds the same answers")
            return
        rank_zero_warn(
            f"{change}: resuming is not exact. Training goes on after {steps * now.answers} answers ({consumed} were "
            "consumed), in other batches; a few thousand answers may come again or be left out"
        )


@dataclass(frozen=True)
class Split:
    """The split of the answers of one optimizer step.

    Attributes:
        size: Answers in a batch of one rank.
        ranks: Processes that train together.
        accumulated: Batches of one rank in a step.
    """

    size: int
    ranks: int
    accumulated: int

    @classmethod
    def of(cls, state: dict[str, Any], default: Split) -> Split:
        """Returns the split of a checkpoint; an old one does not hold everything."""
        known = {"size": state["batch_size"], "ranks": state.get("ranks"), "accumulated": state.get("accumulated")}
        return replace(default, **{name: value for name, value in known.items() if value is not None})

    @property
    def answers(self) -> int:
        """Returns the answers of one optimizer step."""
        return self.size * self.ranks * self.accumulated

    @property
    def times(self) -> str:
        """Returns in words how often batches are accumulated."""
        return f", accumulated {self.accumulated} times" if self.accumulated > 1 else ""
