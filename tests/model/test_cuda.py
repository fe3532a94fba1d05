"""Tests that need a GPU: kernels against the reference, captured and compiled against plain, and no waiting."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from tests.model.conftest import CODES, shape
from vidchat.model.attention import HAS_FLASH, attend
from vidchat.model.compiled import compile_blocks
from vidchat.model.depth import CodeSampling, DepthTransformer
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.graphs import CapturedLoops
from vidchat.model.mask import BlockCausal
from vidchat.model.precision import to_bf16
from vidchat.training.ema import EMA
from vidchat.training.schedule import OptimizerSettings, clip_and_guard, make_optimizer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WIDE = replace(shape(), head_dim=16)  # FlexAttention's least


@pytest.fixture(params=[False, True], ids=["masked", "set_causal"])
def model(make_responder, request):
    return make_responder(backbone=WIDE, spatial=WIDE, depth=WIDE, set_causal=request.param).to(DEVICE)


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "queries"), [(700, 700), (700, 350), (650, 600), (300, 300), (100, 60)])
def test_flex_is_the_dense_mask_forwards_and_backwards(tokens, queries, dtype):
    visible = torch.ones(3, tokens, dtype=torch.bool, device=DEVICE)
    visible[1, 5:8] = visible[1, 27:44] = visible[2, :61] = False
    steps = torch.arange(tokens, device=DEVICE) // torch.tensor([[17], [40], [5]], device=DEVICE)
    mask = BlockCausal(steps, visible)
    drawn = [torch.randn(3, n, tokens, 64, device=DEVICE, dtype=dtype) for n in (4, 2, 2)]
    found = []
    for backend in ("flex", "dense"):
        inputs = [x.clone().requires_grad_() for x in drawn]
        out = attend(inputs[0][:, :, -queries:], *inputs[1:], mask, backend=backend)
        out = out * visible[:, None, -queries:, None]
        out.float().square().sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).float().norm() < 2e-2 * theirs.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_is_the_dense_mask_for_separate_queries(dtype):
    sizes = torch.tensor([7, 20, 90, 183])
    blocks = torch.arange(4).repeat_interleave(sizes)
    visible = torch.ones(2, 40 + 117, dtype=torch.bool, device=DEVICE)
    keys = torch.cat([torch.zeros(40, dtype=torch.long), 1 + blocks[:117]])
    mask = BlockCausal(keys[None], visible, queries=blocks[None])
    drawn = [torch.randn(2, n, tokens, 64, device=DEVICE, dtype=dtype) for n, tokens in ((4, 300), (2, 157), (2, 157))]
    found = []
    for backend in ("flex", "dense"):
        inputs = [x.clone().requires_grad_() for x in drawn]
        out = attend(*inputs, mask, backend=backend)
        out.float().square().sum().backward()
        found.append([out, *(x.grad for x in inputs)])
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).float().norm() < 2e-2 * theirs.float().norm()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_captured_loop_is_the_loop(bf16):
    """Also on later inputs, for a second number of tokens, and after the weights have changed in place."""
    torch.manual_seed(0)
    head, loops = FlowHead(6, 16, FlowShape(width=32, blocks=2)).to(DEVICE), CapturedLoops()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if bf16:
        to_bf16(head)
    with torch.no_grad():
        for count in (5, 11, 5):
            noise, condition = torch.randn(count, 6, device=DEVICE), torch.randn(2 * count, 16, device=DEVICE)
            ours = loops.run_padded(head.integrate, noise, condition, 4, 2.0)
            plain, allowed = head.integrate(noise, condition, 4, 2.0), 2e-2 if bf16 else 1e-3
            torch.testing.assert_close(ours, plain, atol=allowed, rtol=allowed)
            for parameter in head.parameters():
                parameter.mul_(1.1)
    assert len(loops._graphs) == 2
    assert not loops._refused


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    "sampling",
    [CodeSampling(), CodeSampling(temperature=0), CodeSampling(1.0, 0, 0.9)],
    ids=["top_k", "greedy", "top_p"],
)
@pytest.mark.parametrize("bf16", [False, True])
def test_captured_codes_are_the_plain_loops(sampling, guidance, bf16):
    """Also for later inputs, another batch size, and after the weights have changed in place."""
    torch.manual_seed(0)
    depth, loops = DepthTransformer(WIDE, 8, CODES).to(DEVICE), CapturedLoops()
    if bf16:
        to_bf16(depth)
    seen = set()
    with torch.no_grad():
        for seed, count in enumerate((2, 3, 2)):
            hidden = torch.randn(count * (1 if guidance == 1 else 2), 4, 8, device=DEVICE)
            generators = [torch.Generator(DEVICE).manual_seed(seed) for _ in range(2)]
            with no_waiting() if count in seen else torch.no_grad():  # a capture waits, once
                captured = depth.sample(hidden, sampling, guidance, generators[0], loops)
            assert torch.equal(captured, depth.sample(hidden, sampling, guidance, generators[1]))
            seen.add(count)
            for parameter in depth.parameters():
                parameter.mul_(1.1)
    assert len(loops._graphs) == 2
    assert not loops._refused


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_chunk_never_waits_and_is_the_same_with_graphs(model, make_batch, guidance):
    model, batch, drawn = model.eval(), make_batch(padded=False).to(DEVICE), []
    sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance, noise_level=0.1)
    for loops in (None, CapturedLoops()):
        generator = torch.Generator(DEVICE).manual_seed(0)
        with torch.no_grad():
            state = model.start(batch, 2, guidance, undo=1)
            for step in range(5):
                with no_waiting() if step else torch.no_grad():  # a capture waits, once
                    said = model.generate_chunk(state, sampling, generator, loops)
                    heard = Chunk(batch.heard_latents[:, 0], batch.heard_codes[:, 0]) if step % 2 else None
                    state = model.read_step(state, said, heard, 0.1, generator)
        drawn.append(said)
    torch.testing.assert_close(drawn[0][0], drawn[1][0], atol=2e-2, rtol=2e-2)
    assert torch.equal(drawn[0][1], drawn[1][1])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_in_bf16_nothing_waits_and_graphs_serve_the_next_answer(model, make_batch, guidance):
    batch, drawn, loops, generator = make_batch(padded=False).to(DEVICE), [], CapturedLoops(), torch.Generator(DEVICE)
    full, half = model.eval(), copy.deepcopy(model).eval()
    to_bf16(half)
    sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance)
    with torch.no_grad():
        for network, own in ((full, None), (half, None), (half, loops)):
            state = network.start(batch, 2, guidance)
            with patch.object(
                network.depth, "sample", lambda *_: batch.codes[:, 1]
            ):  # another code would give another video
                drawn.append(network.generate_chunk(state, sampling, generator.manual_seed(0), own)[0])
        for answer in range(2):
            loops.check_weights(half)
            state = half.start(batch, 2, guidance)
            for chunk in range(4):
                with no_waiting() if answer or chunk else torch.no_grad():
                    said = half.generate_chunk(state, sampling, generator, loops)
                    state = half.read_step(state, said, None, 0.1, generator)
    assert not loops._refused
    assert {x.dtype for layer in state.cache._layers for x in layer} == {torch.bfloat16}
    for latents in drawn[1:]:
        assert (latents - drawn[0]).norm() < 3e-2 * drawn[0].norm()


@pytest.mark.skipif(not HAS_FLASH, reason="needs flash-attn")
def test_flash_reads_a_cache_as_sdpa_does():
    """A few queries on the first keys of a longer cache, as in generation, and causal, as in training."""
    queries = torch.randn(2, 4, 300, 64, device=DEVICE, dtype=torch.bfloat16)
    keys, values = torch.randn(2, 2, 2, 400, 64, device=DEVICE, dtype=torch.bfloat16).unbind()
    for count, length, causal in ((17, 250, False), (1, 399, False), (300, 300, True)):
        inputs = queries[:, :, :count], keys[:, :, :length], values[:, :, :length]
        ours = attend(*inputs, causal=causal, backend="flash").float()
        theirs = F.scaled_dot_product_attention(*(x.float() for x in inputs), is_causal=causal, enable_gqa=True)
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def step(model, batch, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    model.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = model.loss(batch)["loss"]
    loss.backward()
    return loss.detach()


def test_a_training_step_never_waits(model, make_batch):
    model, batch = model.train(), make_batch().to(DEVICE)
    optimizer, schedule = make_optimizer(model, OptimizerSettings())
    ema = EMA(model, 0.9)
    for update in range(4):
        with no_waiting() if update > 1 else torch.enable_grad():  # the first steps fill caches and compile flex
            loss = step(model, batch, seed=0)
            _, skipped = clip_and_guard(optimizer, model, 1.0)
            optimizer.step()
            schedule.step()
            ema.update()
        assert loss.isfinite()
        assert skipped == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_training_is_the_same_training(make_responder, make_batch, recompute):
    """Up to half precision, between `flex` and `dense`."""
    wide = replace(WIDE, recompute=recompute)
    dense = make_responder(backbone=replace(WIDE, attention="dense"), spatial=WIDE, depth=WIDE).to(DEVICE).train()
    flex = make_responder(backbone=wide, spatial=wide, depth=wide).to(DEVICE).train()
    compiled, batch = copy.deepcopy(flex), make_batch().to(DEVICE)
    compile_blocks(compiled)
    for seed in range(2):
        expected = step(dense, batch, seed)
        torch.testing.assert_close(step(flex, batch, seed), expected, atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(step(compiled, batch, seed), expected, atol=2e-2, rtol=2e-2)
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None])
            for m in (dense, flex, compiled)
        ]
        torch.testing.assert_close(norms[1:], [norms[0]] * 2, atol=5e-2, rtol=5e-2)
