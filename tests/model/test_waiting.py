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
from vidchat.model.generation_state import ChunkSampling
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
    """After prefilling, which waits once per answer."""
    on_cpu, model = (make_responder(set_causal=set_causal).eval() for _ in range(2))
    if bf16:
        to_bf16(on_cpu)
        to_bf16(model)
    model, batch = model.to("meta"), make_batch(padded=False)
    sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance, noise_level=0.1, codes=CodeSampling(top_p=0.9))
    with torch.no_grad():
        prefilled = on_cpu.prefill(batch, 2, guidance)
        names = ("hidden", "positions", "reference", "last")
        state = replace(prefilled, **{name: getattr(prefilled, name).to("meta") for name in names})
        state.cache._layers = [tuple(x.to("meta") for x in layer) for layer in state.cache._layers]
        if state.cache._visible is not None:
            state.cache._visible = state.cache._visible.to("meta")
        model.generate_chunk(state, sampling)  # positions inside a chunk are copied once and cached
        with no_waiting():
            for _ in range(4):
                latents, codes = model.generate_chunk(state, sampling)
                state = model.append_chunk(state, latents, codes, 0.1)
            state = model.restart(model.append_heard_chunk(state, latents, codes), latents)
    assert state.hidden.is_meta


@pytest.mark.parametrize("set_causal", [False, True])
def test_a_training_step_never_waits(make_responder, make_batch, set_causal):
    objective = Objective(spatial_chunks=3, code_dropout=0.5)
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
            totals.add(batch.chunk_mask.sum(), {"loss": scalar, "inputs": has_implausible(batch, scalar.device)})
        count, means = totals.gather()
        skips.add(scalar, means["inputs"] > 0)
        gradient = torch.nn.Linear(3, 3, device="meta")
        gradient(torch.ones(1, 3, device="meta")).sum().backward()
        clip_and_guard(torch.optim.AdamW(gradient.parameters()), gradient, 1.0, 2 / count.clamp(min=1))
    assert count.is_meta
    assert means["loss"].is_meta


def test_flex_masks_never_wait():
    mask = BlockCausal(torch.arange(700) // 17, torch.ones(2, 700, dtype=torch.bool, device="meta"))
    with no_waiting():
        assert mask.flex(500).kv_indices.is_meta
