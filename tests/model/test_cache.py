"""The cache of generation shows each step what it should see, against a plain list of the steps read so far."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidchat.model.cache import KeyValueCache
from vidchat.model.rotary import rotary_angles, rotate

HEARD, SAID, PINNED = 3, 2, 4
VISIBLE = torch.tensor([[True, True, True, True], [False, True, False, True]])


def write(cache: KeyValueCache, tokens: int, first: int) -> Tensor:
    """Writes tokens numbered from `first`; returns the keys (n,) in the order of the slots."""
    numbers = torch.arange(first, first + tokens).float().view(1, 1, tokens, 1).expand(2, -1, -1, -1)
    keys, values = cache.write(0, numbers, -numbers)
    assert torch.equal(values, -keys), "keys and values stay together"
    cache.advance(tokens)
    return keys[0].flatten()


def seen(cache: KeyValueCache, keys: Tensor) -> list[set[int]]:
    return [{int(key) for key in keys[mask]} for mask in cache.key_mask(0)[:, 0, 0]]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data(), st.integers(1, 4), st.integers(0, 3))
def test_a_step_sees_the_pinned_tokens_its_window_and_itself(data: st.DataObject, window: int, undo: int) -> None:
    cache = KeyValueCache(1, VISIBLE, HEARD, SAID, window, undo)
    pinned = seen(cache, write(cache, PINNED, 0))
    assert pinned == [{0, 1, 2, 3}, {1, 3}]
    steps: list[list[set[int]]] = []  # of each step, what each sample sees of it
    number, can_undo = PINNED, 0
    for _ in range(data.draw(st.integers(1, 16))):
        count = data.draw(st.integers(0, can_undo))
        if count:
            cache.take_back(len(steps), count)
            del steps[-count:]
            can_undo -= count
        tokens = data.draw(st.integers(0, HEARD))  # of what is heard: a talker may be unseen
        said = data.draw(st.booleans())
        visible = torch.tensor(data.draw(st.lists(st.booleans(), min_size=2 * tokens, max_size=2 * tokens)))
        visible = visible.view(2, tokens).bool()
        cache.open_step(len(steps) + 1, visible if tokens else None, said)
        own = [{number + i for i in range(tokens) if visible[sample, i]} for sample in range(2)]
        own = [heard | {number + tokens + i for i in range(SAID * said)} for heard in own]
        steps.append(own)
        can_undo = min(undo, can_undo + 1)
        if tokens or said:
            keys = write(cache, tokens + SAID * said, number)
            number += tokens + SAID * said
            near = steps[-window - 1 :]
            assert seen(cache, keys) == [pinned[i].union(*(step[i] for step in near)) for i in range(2)]
    assert cache._layers[0][0].shape[2] == cache.capacity == PINNED + (window + 1 + undo) * (HEARD + SAID)


def test_pinned_keys_are_moved_from_where_they_were_written() -> None:
    """Any number of moves equals the last one alone; values and other keys stay."""
    cache, shape = KeyValueCache(2, VISIBLE, HEARD, SAID, 1, 0), (2, 1, PINNED, 16)
    written = [(torch.randn(shape), torch.randn(shape)) for _ in range(2)]
    for layer, (keys, values) in enumerate(written):
        cache.write(layer, keys, values)
    cache.open_step(1, None, said=True)
    ring = torch.randn(2, 1, SAID, 16)
    for layer in range(2):
        cache.write(layer, ring, ring)
    assert not cache.moved
    for shift in (3.0, 20.0, 7.0):
        angles = rotary_angles(torch.tensor([[[shift, 0.0, 0.0]]]), 16, 100.0)
        cache.move_pinned(angles)
    assert cache.moved
    for layer, (keys, values) in enumerate(written):
        own_keys, own_values = cache._layers[layer]
        assert torch.equal(own_keys[:, :, :PINNED], rotate(keys, angles))
        assert torch.equal(own_values[:, :, :PINNED], values)
        assert torch.equal(own_keys[:, :, PINNED + HEARD : PINNED + HEARD + SAID], ring)
    cache.move_pinned(rotary_angles(torch.zeros(1, 1, 3), 16, 100.0))
    assert torch.equal(cache._layers[0][0][:, :, :PINNED], written[0][0]), "and back"
