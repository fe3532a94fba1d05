"""A training stream that never ends, and of which batch k is a pure function of the seed and k.

So resuming is starting at k, exactly, whatever the number of workers; nothing of a worker's state need be saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from vidchat.data.folder import FolderError

Draw = tuple[int, torch.Generator]  # an item's index, and the generator of every random choice made for it
Make = Callable[[list[Draw]], Any]  # draws to a batch


def generator_for(*place: int | str) -> torch.Generator:
    """A generator that depends on every part of `place`, and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> list[int]:
    return torch.randperm(count, generator=generator_for(seed, "epoch", epoch)).tolist()


class Endless(IterableDataset):
    """Batches k = start, start + 1, ... for ever; of W workers, the w-th makes start + w, start + w + W, ...

    All ranks together draw one endless sequence, epoch after shuffled epoch: global batch k is the next
    `ranks * batch_size` draws of it, of which rank r takes the r-th share.

    Args:
        make: Draws to a batch; looks at nothing else that changes.
        count: Number of items.
        batch_size: Draws in a batch of one rank.
        seed: Of the order and of every draw's generator.
        start: The first batch.
        rank: This process among `ranks`.
        ranks: Processes that train together.
    """

    def __init__(
        self, make: Make, count: int, batch_size: int, seed: int, start: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        self.make, self.count, self.batch_size = make, count, batch_size
        self.seed, self.start, self.rank, self.ranks = seed, start, rank, ranks

    def batch(self, k: int) -> Any:
        """Batch k of this rank."""
        first = (k * self.ranks + self.rank) * self.batch_size
        return self.make([self._draw(place) for place in range(first, first + self.batch_size)])

    def _draw(self, place: int) -> Draw:
        epoch, within = divmod(place, self.count)
        return _permutation(self.seed, epoch, self.count)[within], generator_for(self.seed, "draw", place)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        k = self.start + first
        while True:
            yield self.batch(k)
            k += step


class Fixed(Dataset):
    """Every item once, in order, in batches (the last may be smaller), each item drawn the same way every time."""

    def __init__(self, make: Make, count: int, batch_size: int, seed: int) -> None:
        self.make, self.count, self.batch_size, self.seed = make, count, batch_size, seed

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, k: int) -> Any:
        if not 0 <= k < len(self):
            raise IndexError(k)
        items = range(k * self.batch_size, min((k + 1) * self.batch_size, self.count))
        return self.make([(item, generator_for(self.seed, "fixed", item)) for item in items])


class EndlessDataModule(L.LightningDataModule):
    """Loads endless training batches and fixed validation batches, and knows how many of the former were trained on.

    A subclass has `train` and `val` after `setup`: (make, number of items), or `None`.
    """

    train: tuple[Make, int] | None = None
    val: tuple[Make, int] | None = None

    def __init__(self, batch_size: int, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.consumed = 0  # batches handed to the training step, not those that workers have made ahead

    def train_dataloader(self) -> DataLoader:
        """Endless batches of the split `train`, from the first that was not trained on."""
        if self.train is None:
            raise FolderError('the data set has no usable clip of the split \'train\'; give some "split": "train"')
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        make, count = self.train
        return self._loader(Endless(make, count, self.batch_size, self.seed, self.consumed, rank, ranks))

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Each item of the split `val` once, in order; no loader where validation is off and the split is empty."""
        if self.val is None:
            if self.trainer is not None and self.trainer.limit_val_batches == 0:
                return []
            raise FolderError(
                'the data set has no usable clip of the split \'val\'; give some dialogues "split": "val", or set '
                "trainer.limit_val_batches=0 to train without validation"
            )
        make, count = self.val
        return self._loader(Fixed(make, count, self.batch_size, self.seed))

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
        """Where the stream stands."""
        return {"consumed": self.consumed, "seed": self.seed, "batch_size": self.batch_size}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where a run stood; raises `ValueError` if its batches were other batches."""
        for key in ("seed", "batch_size"):
            if state_dict[key] != getattr(self, key):
                raise ValueError(
                    f"the checkpoint was made with data.{key}={state_dict[key]}, not {getattr(self, key)}, so its "
                    f"batches cannot be continued; set data.{key}={state_dict[key]}"
                )
        self.consumed = state_dict["consumed"]
