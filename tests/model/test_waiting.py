"""Waits for a GPU, detected without one: on the meta device, which holds no values.

Copying a tensor from the host to a device waits for all queued work, unless the copy is `non_blocking`. Reading a value
back, or branching on one, raises an error on the meta device anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vidchat.model.depth import CodeSampling
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.mask import BlockCausal
from vidchat.model.objective import Objective
from vidchat.model.precision import to_bf16
from vidchat.training.ema import EMA
from vidchat.training.schedule import clip_and_guard
from vidchat.training.skips import Skips, has_implausible
from vidchat.training.totals import Totals


class NoNumbers(TorchFunctionMode):
    """Refuses `torch.tensor([...], device=...)`, which copies from the host; on the meta device it would not."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        device = torch.device((kwargs or {}).get("device") or "cpu")
        if func in (torch.tensor, torch.as_tensor) and device.type != "cpu":
            raise AssertionError(f"{args[0]} is copied to the device")
        return func(*args, **(kwargs or {}))


class NoCopies(TorchDispatchMode):
    """Refuses copies that wait, and operations on tensors of two devices; scalars may come from the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        there = {x.device.type for x in tree_leaves(out) if isinstance(x, torch.Tensor)}
        here = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.dim()}
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if "meta" in there | here and "cpu" in there | here and not (copies and kwargs.get("non_blocking")):
            raise AssertionError(f"{func} goes from {sorted(here)} to {sorted(there)}")
        return out


@contextmanager
def no_waiting() -> Iterator[None]:
    with NoNumbers(), NoCopies():
        yield


def test_copies_that_wait_are_noticed():
    with no_waiting():
        torch.arange(3).to("meta", non_blocking=True)
        with pytest.raises(AssertionError, match="is copied to the device"):
            torch.tensor([1, 2], device="meta")
        with pytest.raises(AssertionError, match="from \\['cpu'\\] to \\['meta'\\]"):
            torch.arange(3).to("meta")
        with pytest.raises(AssertionError, match="goes from"):
            torch.zeros(3, device="meta")[torch.tensor([0, 1])]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("set_causal", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_loop_never_waits(make_responder, make_batch, guidance, set_causal, bf16):
    """After step 0, which waits once per conversation; also behind the window, and after steps were taken back."""
    on_cpu, model = (make_responder(set_causal=set_causal).eval() for _ in range(2))
    if bf16:
        to_bf16(on_cpu)
        to_bf16(model)
    model, batch = model.to("meta"), make_batch()
    sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance, noise_level=0.1, codes=CodeSampling(top_p=0.9))
    with torch.no_grad():
        first = on_cpu.start(batch, 2, guidance, undo=2)
        names = ("hidden", "origin", "reference", "last")
        state = replace(first, **{name: getattr(first, name).to("meta") for name in names})
        state.cache._layers = [tuple(x.to("meta") for x in layer) for layer in state.cache._layers]
        for name in ("_visible", "_present"):
            setattr(state.cache, name, getattr(state.cache, name).to("meta"))
        model.generate_chunk(state, sampling)  # positions inside a chunk are copied once and cached
        with no_waiting():
            for step in range(5):
                said = model.generate_chunk(state, sampling)
                heard = Chunk(said.latents, said.codes) if step % 2 else None
                before, state = state, model.read_step(state, said, heard, 0.1)
            assert state.cache.moved
            state.cache.take_back(state.step, 1)
            state = model.read_step(before, None, Chunk(said.latents))
            state = model.read_step(model.read_step(state), Chunk(said.latents, still=True))
    assert state.hidden.is_meta


@pytest.mark.parametrize("resample", [0.0, 1.0])
@pytest.mark.parametrize("set_causal", [False, True])
def test_a_training_step_never_waits(make_responder, make_batch, set_causal, resample):
    objective = Objective(spatial_chunks=3, code_dropout=0.5, resample=resample)
    model = make_responder(objective=objective, set_causal=set_causal).train().to("meta")
    batch, ema, optimizer = make_batch().to("meta"), EMA(model, 0.9), torch.optim.AdamW(model.parameters())
    model.loss(batch)["loss"].backward()  # the first step fills caches
    with no_waiting():
        losses = model.loss(batch)
        losses["loss"].backward()
        norm, skipped = clip_and_guard(optimizer, model, 1.0)
        ema.update()
    assert all(value.is_meta for value in (*losses.values(), norm, skipped))
    # Without a gradient, a parameter would stop distributed training.
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


def test_totals_of_a_step_never_wait(make_batch):
    batch, totals, skips = make_batch().to("meta"), Totals(), Skips(patience=5)
    scalar = torch.ones((), device="meta")
    skips.add(scalar, scalar > 0)  # the first call allocates
    with no_waiting():
        for _ in range(2):
            totals.add(batch.targets.sum(), {"loss": scalar, "inputs": has_implausible(batch, scalar.device)})
        count, means = totals.gather()
        skips.add(scalar, means["inputs"] > 0)
        gradient = torch.nn.Linear(3, 3, device="meta")
        gradient(torch.ones(1, 3, device="meta")).sum().backward()
        clip_and_guard(torch.optim.AdamW(gradient.parameters()), gradient, 1.0, 2 / count.clamp(min=1))
    assert count.is_meta
    assert means["loss"].is_meta


def test_flex_masks_never_wait():
    """Whether the blocks are those of dialogues, on the device, or follow from shapes alone, on the host."""
    visible = torch.ones(2, 700, dtype=torch.bool, device="meta")
    for blocks in (torch.arange(700)[None] // 17, torch.zeros(2, 700, dtype=torch.long, device="meta")):
        with no_waiting():
            assert BlockCausal(blocks, visible).flex(500).kv_indices.is_meta
            assert BlockCausal(blocks, visible).dense().is_meta
