"""The ring cache holds exactly the window, the conditions and the reference, however often it has wrapped."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import change, shape
from vidchat.model.cache import KeyValueCache


def outputs_at_chunk_8(model, batch, window: int) -> torch.Tensor:
    """The backbone's outputs after 8 chunks have been appended."""
    with torch.no_grad():
        state = model.prefill(batch, window)
        for t in range(1, 9):
            state = model.append_chunk(state, batch.latents[:, t], batch.codes[:, t - 1])
    return state.hidden


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_chunk_8_sees_its_window_and_nothing_older(make_responder, make_batch, window, padded):
    """One layer: in a deeper model, an older chunk still acts through younger ones."""
    model = make_responder(backbone=shape(layers=1)).eval()
    before = outputs_at_chunk_8(model, make_batch(chunks=9, padded=padded), window)
    for chunk in range(9):
        batch = make_batch(chunks=9, padded=padded)
        batch.latents[:, chunk] += 1.0
        same = torch.equal(outputs_at_chunk_8(model, batch, window), before)
        assert same == (0 < chunk < 8 - window), f"chunk {chunk}"


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_a_wrapped_ring_equals_a_windowed_mask(make_responder, make_batch, window, padded):
    """Two layers: the outputs of every chunk equal those of one pass in which each chunk sees its window only."""
    model, batch = make_responder().eval(), make_batch(chunks=9, padded=padded)
    condition = model._encode_conditions(batch)
    levels = torch.zeros(2, 9)
    own = model._embed(batch.latents[:, :-1], batch.codes[:, :-1], levels, with_reference=True)
    positions = model._positions(condition.end, torch.arange(9), (2, 2))
    mask = model._mask(condition, own)
    blocks, visible = mask.blocks, mask.visible
    chunk = blocks - blocks[-1] + 8  # below 0 in the condition
    near = (chunk[:, None] - chunk[None] <= window) | (chunk[None] <= 0)
    seen = (blocks[:, None] >= blocks[None]) & near & visible[:, None]
    with torch.no_grad():
        uncached = model.backbone(
            torch.cat([condition.tokens, own.flatten(1, 2)], dim=1),
            torch.cat([condition.positions, positions.flatten(1, 2)], dim=1),
            (seen | torch.eye(len(blocks), dtype=torch.bool))[:, None],
        )[:, -72:].unflatten(1, (9, 8))
        state = model.prefill(batch, window)
        for t in range(9):
            torch.testing.assert_close(state.hidden, uncached[:, t], atol=1e-5, rtol=1e-5)
            state = model.append_chunk(state, batch.latents[:, t + 1], batch.codes[:, t])


@pytest.mark.parametrize("name", ["turn_latents", "text", "voice"])
def test_the_condition_is_never_evicted(make_responder, make_batch, name):
    model, batch = make_responder(backbone=shape(layers=1)).eval(), make_batch(chunks=9)
    before = outputs_at_chunk_8(model, batch, 1)
    change(batch, name, 11)
    assert not torch.equal(outputs_at_chunk_8(model, batch, 1), before)


def test_a_chunk_overwrites_no_key_that_it_may_still_read():
    """`window + 1` slots: the window and the chunk being written. Keys and values stay together."""
    cache = KeyValueCache(1, pinned=3, chunk=2, window=2)
    assert cache.capacity == 3 + (2 + 1) * 2
    seen = []
    for size in [3, 2, 2, 2, 2, 2]:
        keys = torch.arange(cache.written, cache.written + size).float().view(1, 1, size, 1)
        stored, values = cache.write(0, keys, -keys)
        assert torch.equal(values, -stored)
        seen.append(sorted(stored.flatten().tolist()))
        cache.advance(size)
    assert seen[:4] == [list(range(3)), list(range(5)), list(range(7)), list(range(9))]
    assert seen[4] == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert seen[5] == [0, 1, 2, 7, 8, 9, 10, 11, 12]
