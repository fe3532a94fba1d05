"""Which items batch k holds, as a function of the seed and k: mixed by weight, shuffled, bucketed, shared out.

Items are drawn from streams, each gone through epoch after shuffled epoch, by weight. Only items of one shape can lie
in a batch: streams of one shape are a group, and each batch belongs to a group. A group's draws are cut into pools of
some thousands, sorted within a pool so that batches hold items of like length, and the pool's batches are shuffled.
Sorting moves draws within their pool only, so whoever has taken whole pools has taken every draw of them exactly once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

POOL = 4096  # draws of a pool, about
CYCLE = 1000  # choices after which shares are exact
T = TypeVar("T")


def generator_for(*place: int | str) -> torch.Generator:
    """A generator that depends on every part of `place`, and on nothing else."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@dataclass(frozen=True)
class Stream:
    """Items that are gone through again and again.

    Attributes:
        name: Its own among the streams; part of every random choice.
        items: Their numbers.
        weight: How often one of its items is drawn, compared with the other streams.
    """

    name: str
    items: Sequence[int] | np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Place:
    """An item that is drawn, and where: no two draws have the same place."""

    item: int
    where: str


class Order:
    """The endless order of a data set.

    Args:
        seed: Of every choice.
        groups: Streams, those of one shape together; at least one, none of them empty.
        lengths: Of every item, as what is padded: one number or more, such as the answer's chunks and the turns'.
            `None` where all items are of one length.
    """

    def __init__(self, seed: int, groups: Sequence[Sequence[Stream]], lengths: np.ndarray | None = None) -> None:
        self.seed, self.groups, self.lengths = seed, [list(group) for group in groups], lengths
        self.choose_group = Shares(seed, "groups", [sum(stream.weight for stream in group) for group in groups])
        self.choose_stream = [
            Shares(seed, f"group {g}", [stream.weight for stream in group]) for g, group in enumerate(groups)
        ]
        self._pools: LRUCache[list[Place]] = LRUCache(2 * len(groups))
        # Those of large streams are large: two for each stream, as a pool may lie in two epochs, and the batches'.
        self._permutations: LRUCache[np.ndarray] = LRUCache(2 * sum(len(group) + 1 for group in groups))

    @classmethod
    def shuffled(cls, seed: int, count: int) -> Order:
        """Of items that are all alike."""
        return cls(seed, [[Stream("", range(count))]])

    def batch(self, k: int, size: int, rank: int = 0, ranks: int = 1) -> list[Place]:
        """Batch k of one of several ranks, which together have the `ranks * size` items of global batch k."""
        group, number = self.choose_group(k)
        whole = self._global_batch(group, number, size, ranks)
        return whole[rank * size : (rank + 1) * size]

    def pool(self, group: int, size: int, ranks: int = 1) -> int:
        """Global batches of a pool."""
        count = sum(len(stream.items) for stream in self.groups[group])
        return max(1, min(POOL, count) // (size * ranks)) if self.lengths is not None else 1

    def fingerprint(self) -> str:
        """Names the order: runs with the same seed and fingerprint see the same batches."""
        digest = hashlib.sha256()
        for group in self.groups:
            for stream in group:
                digest.update(f"{stream.name} {stream.weight} {len(stream.items)}".encode())
                _update(digest, stream.items)
        if self.lengths is not None:
            _update(digest, self.lengths)
        return digest.hexdigest()[:16]

    def _global_batch(self, group: int, number: int, size: int, ranks: int) -> list[Place]:
        whole, pool = size * ranks, self.pool(group, size, ranks)
        which, within = divmod(number, pool)
        key = (group, which, size, ranks)
        places = self._pools.get(key, lambda: self._pool(group, which, pool * whole, size))
        if pool > 1:
            within = int(self._permutation(("batches", group, which), pool)[within])
        return places[within * whole : (within + 1) * whole]

    def _pool(self, group: int, which: int, count: int, size: int) -> list[Place]:
        """The draws of a pool, neighbours being of like length."""
        places = [self._draw(group, n) for n in range(which * count, (which + 1) * count)]
        if self.lengths is None:
            return places
        lengths = self.lengths[[place.item for place in places]].reshape(count, -1)
        return [places[row] for row in snake(lengths, size)]

    def _draw(self, group: int, n: int) -> Place:
        """Draw n of a group."""
        number, j = self.choose_stream[group](n)
        stream = self.groups[group][number]
        epoch, within = divmod(j, len(stream.items))
        where = ("epoch", epoch) if not stream.name else (stream.name, "epoch", epoch)
        row = int(self._permutation(where, len(stream.items))[within])
        return Place(int(stream.items[row]), f"{stream.name}/{j}" if stream.name else str(j))

    def _permutation(self, where: tuple[int | str, ...], count: int) -> np.ndarray:
        key = (*where, count)
        return self._permutations.get(key, lambda: permutation(generator_for(self.seed, *where), count))


class LRUCache(Generic[T]):
    """The last few values that were asked for."""

    def __init__(self, limit: int) -> None:
        self.limit, self.values = limit, OrderedDict[Any, T]()

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not at hand."""
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
        """(CYCLE,) choices, and of each how often it was made before in this cycle."""
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
    """(count,) the numbers 0 .. count - 1 in random order, int32 where they fit: those of millions are kept."""
    order: np.ndarray = torch.randperm(count, generator=generator).numpy()
    return order.astype(np.int32) if count < 1 << 31 else order


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers, each at least 1, that sum to `total` and are as the weights (largest remainders)."""
    if any(not weight > 0 for weight in weights):
        raise ValueError(f"weights must be above 0, got {list(weights)}; leave out what is not to be drawn")
    exact = [weight / sum(weights) * total for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in range(total - sum(counts)):
        counts[by_remainder[i % len(counts)]] += 1
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return counts


def snake(lengths: np.ndarray, size: int) -> np.ndarray:
    """An order of n items (n, d) in which neighbours are alike: strips by the first length, sorted by the second."""
    count = len(lengths)
    rows = np.argsort(lengths[:, 0], kind="stable")
    if lengths.shape[1] == 1 or not (lengths[:, 1] != lengths[0, 1]).any():
        return rows
    strips = max(1, round(float(np.sqrt(count / size))))
    parts = []
    for number, strip in enumerate(np.array_split(rows, strips)):
        part = strip[np.argsort(lengths[strip, 1], kind="stable")]
        parts.append(part if number % 2 == 0 else part[::-1])
    return np.concatenate(parts)


def padding(batches: Iterable[Sequence[int]], lengths: np.ndarray) -> float:
    """The share of a number of batches that is padding, each length being padded to the longest of its batch."""
    filled = padded = 0
    for items in batches:
        some = lengths[list(items)].reshape(len(items), -1)
        filled += int(some.sum())
        padded += int(some.max(0).sum()) * len(items)
    return 1 - filled / padded if padded else 0.0
