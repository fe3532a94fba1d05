"""No repeats and no gaps, whatever the weights, lengths, ranks and workers; and the same again from any batch on."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidchat.data.loading.order import Order, Shares, Stream, apportion, padding, snake


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 40, (count, 2))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 90),
    size=st.integers(1, 5),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 5),
    bucketed=st.booleans(),
)
def test_all_ranks_together_draw_every_item_once_an_epoch(
    count: int, size: int, ranks: int, seed: int, bucketed: bool
) -> None:
    order = Order(seed, [[Stream("", range(count))]], lengths_of(count) if bucketed else None)
    pool = order.pool(0, size, ranks)
    batches = pool * (1 + 3 * count // (pool * size * ranks))  # whole pools, about three epochs
    places = [p for k in range(batches) for r in range(ranks) for p in order.batch(k, size, r, ranks)]
    assert sorted(int(place.where) for place in places) == list(range(batches * size * ranks))
    drawn = [place.item for place in sorted(places, key=lambda place: int(place.where))]
    for first in range(0, len(drawn) - count + 1, count):
        assert Counter(drawn[first : first + count]) == Counter(range(count))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    ranks=st.integers(1, 3),
    seed=st.integers(0, 3),
    grids=st.integers(1, 2),
)
def test_every_epoch_of_every_stream_draws_each_item_once(
    counts: list[int], weights: list[float], ranks: int, seed: int, grids: int
) -> None:
    groups: list[list[Stream]] = [[] for _ in range(min(grids, len(counts)))]
    first = 0
    for number, count in enumerate(counts):
        stream = Stream(f"s{number}", range(first, first + count), weights[number])
        groups[number % len(groups)].append(stream)
        first += count
    order = Order(seed, groups, lengths_of(first))
    seen: dict[str, list[tuple[int, int]]] = {}
    for k in range(240):
        whole = [p for r in range(ranks) for p in order.batch(k, 2, r, ranks)]
        in_group = [{item for s in group for item in s.items} for group in groups]
        assert any(all(p.item in items for p in whole) for items in in_group)  # one shape in a batch
        for place in whole:
            name, j = place.where.split("/")
            seen.setdefault(name, []).append((int(j), place.item))
    for group_number, group in enumerate(groups):
        pool_draws = order.pool(group_number, 2, ranks) * 2 * ranks
        for stream in group:
            drawn = sorted(seen.get(stream.name, []))
            assert len({j for j, _ in drawn}) == len(drawn)  # no draw twice
            # What is missing below the last is only of the pool that was under way.
            assert not drawn or drawn[-1][0] + 1 - len(drawn) <= pool_draws
            for epoch in range(len(drawn) // len(stream.items)):
                some = [item for j, item in drawn if j // len(stream.items) == epoch]
                assert max(Counter(some).values(), default=1) == 1


def test_a_batch_depends_on_its_number_alone() -> None:
    def order() -> Order:
        streams = [Stream("a", range(50), 3), Stream("b", range(50, 80), 1)]
        return Order(7, [streams, [Stream("c", range(80, 90), 1)]], lengths_of(90))

    unbroken = order()
    whole = [unbroken.batch(k, 4) for k in range(120)]
    for k in (119, 3, 77, 40, 0):
        assert order().batch(k, 4) == whole[k]
    assert order().fingerprint() == unbroken.fingerprint()


def test_two_ranks_have_the_halves_of_a_global_batch_that_does_not_depend_on_them() -> None:
    order = Order(1, [[Stream("", range(100))]])
    for k in range(30):
        assert order.batch(k, 2, 0, 2) + order.batch(k, 2, 1, 2) == order.batch(k, 4)


@pytest.mark.parametrize("weights", [[1, 1], [3, 1], [0.7, 0.2, 0.1], [1, 1000]])
def test_shares_are_as_the_weights_say(weights: list[float]) -> None:
    shares = Shares(3, "x", weights)
    choices = [shares(n) for n in range(2000)]
    counts = Counter(choice for choice, _ in choices)
    for choice, weight in enumerate(weights):
        assert counts[choice] / 2000 == pytest.approx(weight / sum(weights), abs=1e-3)
        assert [before for c, before in choices if c == choice] == list(range(counts[choice]))
    assert [choice for choice, _ in choices[:1000]] != [choice for choice, _ in choices[1000:]]


def test_a_weight_of_zero_is_refused() -> None:
    assert sum(apportion([1e-9, 5, 5], 100)) == 100
    with pytest.raises(ValueError, match="weights must be above 0"):
        apportion([0, 1], 100)


@pytest.mark.parametrize("shape", ["both", "answers"])
def test_buckets_keep_padding_under_a_tenth(shape: str) -> None:
    """Answers and questions of 1 to 39 chunks, independent of each other, in batches of 8."""
    lengths = lengths_of(5000)
    if shape == "answers":
        lengths[:, 1] = 0
    order, plain = Order(0, [[Stream("", range(5000))]], lengths), Order.shuffled(0, 5000)
    share, without = (padding(([p.item for p in o.batch(k, 8)] for k in range(600)), lengths) for o in (order, plain))
    assert share < 0.10
    assert without > 0.35


def test_batches_come_in_no_order_of_length() -> None:
    lengths = lengths_of(4096)
    order = Order(0, [[Stream("", range(4096))]], lengths)
    means = [lengths[[p.item for p in order.batch(k, 8)], 0].mean() for k in range(512)]
    assert abs(np.corrcoef(np.arange(512), means)[0, 1]) < 0.15


def test_a_snake_is_a_permutation() -> None:
    assert sorted(snake(lengths_of(101), 8)) == list(range(101))


def test_the_fingerprint_of_many_items_is_the_one_that_checkpoints_hold() -> None:
    lengths = lengths_of(70_000)
    order = Order(0, [[Stream("", range(70_000))]], lengths)
    numbers = np.arange(70_000).tobytes() + lengths.tobytes()
    assert order.fingerprint() == hashlib.sha256(b" 1.0 70000" + numbers).hexdigest()[:16]


@pytest.mark.parametrize("axes", [1, 2])
def test_ranks_share_the_batch_that_one_rank_would_have(axes: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 50, (600, axes))
    order = Order(0, [[Stream("", range(600))]], lengths)
    for k in range(20):
        shared = [drawn for rank in range(3) for drawn in order.batch(k, 4, rank, 3)]
        assert shared == order.batch(k, 12)
