"""The items of batch k as a function of the seed and k: mixed by weight, shuffled, bucketed, and split among ranks.

Items are drawn by weight from streams, each of which repeats shuffled epochs. A batch holds items of one shape only:
streams of one shape are a group, and each batch belongs to a group. A group's draws are cut into pools of some
thousands, sorted within a pool so that batches hold items of like length, and the pool's batches are shuffled. Sorting
moves draws within their pool only, so the batches of whole pools hold every draw of these pools exactly once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

POOL = 4096  # about how many draws a pool has
CYCLE = 1000  # choices after which shares are exact
T = TypeVar("T")


def generator_for(*place: int | str) -> torch.Generator:
    """Returns a generator that depends on every part of `place`, and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Stream:
    """Items that are drawn in endless epochs.

    Attributes:
        name: The name of the stream, which no other stream has; part of every random choice.
        items: The indices of the items.
        weight: How often one of its items is drawn, compared with the other streams.
    """

    name: str
    items: Sequence[int] | np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class DrawnItem:
    """An item that is drawn, and the position of the draw, which no other draw has."""

    item: int
    where: str


class Order:
    """The endless order of a data set.

    Args:
        seed: The seed of every choice.
        groups: Streams, those of one shape together; at least one, none of them empty.
        lengths: (n,) or (n, d) the lengths of every item that are padded, such as the chunks of the answer and of the
            turns. `None` where all items are of one length.
    """

    def __init__(self, seed: int, groups: Sequence[Sequence[Stream]], lengths: np.ndarray | None = None) -> None:
        self.seed, self.groups, self.lengths = seed, [list(group) for group in groups], lengths
        self.choose_group = Shares(seed, "groups", [sum(stream.weight for stream in group) for group in groups])
        self.choose_stream = [
            Shares(seed, f"group {g}", [stream.weight for stream in group]) for g, group in enumerate(groups)
        ]
        self._pools: LRUCache[list[DrawnItem]] = LRUCache(2 * len(groups))
        # Two for each stream, as a pool may lie in two epochs, and those of the batches; large streams have large ones.
        self._permutations: LRUCache[np.ndarray] = LRUCache(2 * sum(len(group) + 1 for group in groups))

    @classmethod
    def shuffled(cls, seed: int, count: int) -> Order:
        """Returns the order of items of one shape and length."""
        return cls(seed, [[Stream("", range(count))]])

    def batch(self, k: int, size: int, rank: int = 0, ranks: int = 1) -> list[DrawnItem]:
        """Returns batch k of one of several ranks, which together have the `ranks * size` items of global batch k."""
        group, number = self.choose_group(k)
        items = self._global_batch(group, number, size, ranks)
        return items[rank * size : (rank + 1) * size]

    def pool(self, group: int, size: int, ranks: int = 1) -> int:
        """Returns how many global batches a pool has."""
        count = sum(len(stream.items) for stream in self.groups[group])
        return max(1, min(POOL, count) // (size * ranks)) if self.lengths is not None else 1

    def fingerprint(self) -> str:
        """Returns a name of the order: runs with the same seed and fingerprint see the same batches."""
        digest = hashlib.sha256()
        for group in self.groups:
            for stream in group:
                digest.update(f"{stream.name} {stream.weight} {len(stream.items)}".encode())
                _update(digest, stream.items)
        if self.lengths is not None:
            _update(digest, self.lengths)
        return digest.hexdigest()[:16]

    def _global_batch(self, group: int, number: int, size: int, ranks: int) -> list[DrawnItem]:
        total, pool = size * ranks, self.pool(group, size, ranks)
        which, within = divmod(number, pool)
        key = (group, which, total)
        items = self._pools.get(key, lambda: self._pool(group, which, pool * total, total))
        if pool > 1:
            within = int(self._permutation(("batches", group, which), pool)[within])
        return items[within * total : (within + 1) * total]

    def _pool(self, group: int, which: int, count: int, size: int) -> list[DrawnItem]:
        """Returns the draws of a pool, neighbours being of like length."""
        items = [self._draw(group, n) for n in range(which * count, (which + 1) * count)]
        if self.lengths is None:
            return items
        lengths = self.lengths[[drawn.item for drawn in items]].reshape(count, -1)
        return [items[row] for row in snake(lengths, size)]

    def _draw(self, group: int, n: int) -> DrawnItem:
        """Returns draw n of a group."""
        number, j = self.choose_stream[group](n)
        stream = self.groups[group][number]
        epoch, within = divmod(j, len(stream.items))
        where = ("epoch", epoch) if not stream.name else (stream.name, "epoch", epoch)
        row = int(self._permutation(where, len(stream.items))[within])
        return DrawnItem(int(stream.items[row]), f"{stream.name}/{j}" if stream.name else str(j))

    def _permutation(self, where: tuple[int | str, ...], count: int) -> np.ndarray:
        key = (*where, count)
        return self._permutations.get(key, lambda: permutation(generator_for(self.seed, *where), count))


class LRUCache(Generic[T]):
    """The values that were used last."""

    def __init__(self, limit: int) -> None:
        self.limit, self.values = limit, OrderedDict[Any, T]()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """Returns the value of a key, made if it is not there."""
        if key not in self.values:
            self.values[key] = make()
            if len(self.values) > self.limit:
                self.values.popitem(last=False)
        self.values.move_to_end(key)
        return self.values[key]


class Shares:
    """An endless sequence of choices, each chosen as often as its weight says, in an order drawn from the seed.

    Choice n, and how often the same was chosen before it, are functions of n; after every `CYCLE` choices the shares
    are exact to 1/CYCLE, and each is chosen at least once.
    """

    def __init__(self, seed: int, name: str, weights: Sequence[float]) -> None:
        self.seed, self.name = seed, name
        self.counts = apportion(weights, CYCLE) if len(weights) > 1 else [1]
        self._cycles: LRUCache[tuple[np.ndarray, np.ndarray]] = LRUCache(2)

    def __call__(self, n: int) -> tuple[int, int]:
        if len(self.counts) == 1:
            return 0, n
        cycle, within = divmod(n, sum(self.counts))
        choices, before = self._cycles.get(cycle, lambda: self._cycle(cycle))
        choice = int(choices[within])
        return choice, cycle * self.counts[choice] + int(before[within])

    def _cycle(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (CYCLE,) choices, and (CYCLE,) how often each was made before in this cycle."""
        ordered = np.repeat(np.arange(len(self.counts)), self.counts)
        choices = ordered[permutation(generator_for(self.seed, self.name, "cycle", cycle), len(ordered))]
        before = np.zeros(len(choices), np.int64)
        for choice in range(len(self.counts)):
            mine = choices == choice
            before[mine] = np.arange(int(mine.sum()))
        return choices, before


def _update(digest: Any, numbers: Sequence[int] | np.ndarray) -> None:
    """Updates a digest with numbers as int64, some at a time: there may be millions."""
    for first in range(0, len(numbers), 1 << 16):
        digest.update(np.asarray(numbers[first : first + (1 << 16)], np.int64).tobytes())


def permutation(generator: torch.Generator, count: int) -> np.ndarray:
    """Returns (count,) the numbers 0 .. count - 1 in random order, int32 where they fit: millions are kept."""
    order: np.ndarray = torch.randperm(count, generator=generator).numpy()
    return order.astype(np.int32) if count < 1 << 31 else order


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Returns integers of at least 1 that sum to `total`, in proportion to weights (largest remainders)."""
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"weights must be above 0, got {list(weights)}; leave out what must not be drawn")
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in range(total - sum(counts)):
        counts[by_remainder[i % len(counts)]] += 1
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts


def snake(lengths: np.ndarray, size: int) -> np.ndarray:
    """Returns (n,) an order of items by lengths (n, d): strips by the first length, each sorted by the second."""
    count = len(lengths)
    rows = np.argsort(lengths[:, 0], kind="stable")
    if lengths.shape[1] == 1 or not (lengths[:, 1] != lengths[0, 1]).any():
        return rows
    strips = max(1, round(float(np.sqrt(count / size))))
    ordered = []
    for number, strip in enumerate(np.array_split(rows, strips)):
        rising = strip[np.argsort(lengths[strip, 1], kind="stable")]
        ordered.append(rising if number % 2 == 0 else rising[::-1])
    return np.concatenate(ordered)


def padding(batches: Iterable[Sequence[int]], lengths: np.ndarray) -> float:
    """Returns the share of padding in some batches, each length being padded to the longest of its batch."""
    filled = padded = 0
    for items in batches:
        theirs = lengths[list(items)].reshape(len(items), -1)
        filled += int(theirs.sum())
        padded += int(theirs.max(0).sum()) * len(items)
    return 1 - filled / padded if padded else 0.0
