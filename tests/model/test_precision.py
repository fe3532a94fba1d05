"""A responder in bf16 computes what training in mixed precision computes, and stays close to fp32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.model.test_one_clock import LAYOUTS, read_by_steps
from vidchat.model.depth import CodeSampling
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.precision import supports_bf16, to_bf16


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm of the second tensor."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@pytest.fixture(params=[False, True], ids=["masked", "set_causal"])
def pair(make_responder, request):
    """One model in fp32 and in bf16."""
    model = make_responder(set_causal=request.param).eval()
    half = copy.deepcopy(model)
    to_bf16(half)
    return model, half


def test_only_linear_layers_are_bf16(pair):
    linear = {
        f"{name}.{parameter}"
        for name, module in pair[1].named_modules()
        if isinstance(module, nn.Linear)
        for parameter, _ in module.named_parameters()
    }
    dtypes = {name: parameter.dtype for name, parameter in pair[1].named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == linear
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}
    tables = ("embed.", "conditions.embeddings.text.ids", "conditions.embeddings.scores.names")
    products = {name for name, x in pair[1].named_parameters() if x.dim() > 1 and not name.startswith(tables)}
    assert products - linear == {"depth.previous.weight", "depth.place", "depth.heads"}


def test_the_backbone_equals_autocast_bit_for_bit(pair, make_batch):
    """The outputs are those of autocast on fp32 weights, given the same history."""
    (model, half), batch = pair, make_batch()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            trained = model.run_backbone(batch)
        ours, full = half.run_backbone(batch), model.run_backbone(batch)
    assert torch.equal(ours, trained)
    assert ours.dtype == torch.float32
    assert 1e-4 < apart(ours, full) < 2e-2


def test_losses_are_those_of_mixed_precision(pair, make_batch):
    (model, half), batch, losses = pair, make_batch(), []
    for network, mixed in ((half, False), (model, True), (model, False)):
        torch.manual_seed(3)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            losses.append(network.loss(batch))
    for part in ("video", "audio", "end"):
        ours, mixed, full = (loss[part] for loss in losses)
        torch.testing.assert_close(ours, mixed, atol=3e-3, rtol=3e-3)
        torch.testing.assert_close(ours, full, atol=1e-2, rtol=1e-2)
        assert ours.dtype == torch.float32


def test_cached_outputs_equal_uncached_ones(pair, make_batch):
    """Up to the rounding of bf16, from a cache in bf16."""
    (_, half), batch = pair, make_batch(turns=[LAYOUTS["interruption"]] * 2)
    with torch.no_grad():
        uncached, states = half.run_backbone(batch), read_by_steps(half, batch)
    assert {x.dtype for layer in states[-1].cache._layers for x in layer} == {torch.bfloat16}
    cached = torch.stack([states[step].hidden for step in batch.steps[0].tolist()], dim=1)
    assert cached.dtype == torch.float32
    assert apart(cached, uncached) < 1e-2
    ends = [states[step].end for step in batch.steps[0].tolist()]
    assert {end.dtype for end in ends if end is not None} == {torch.float32}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_chunk_is_close_to_the_one_in_full_precision(pair, make_batch, guidance):
    batch, drawn, normal = make_batch(), [], set()
    norms = [module for module in pair[1].modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda _, inputs, output: normal.update({inputs[0].dtype, output.dtype}))
    codes = CodeSampling(temperature=0.8, top_k=0)
    sampling = ChunkSampling(sets=3, flow_steps=4, temperature=1.0, guidance=guidance, codes=codes)
    for model in pair:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            drawn.append(model.generate_chunk(model.start(batch, 4, guidance), sampling, generator))
    (full, full_codes, _), (latents, codes, _) = drawn
    assert torch.equal(codes, full_codes), "at this seed no two codes are nearly equally likely"
    assert latents.dtype == full.dtype == torch.float32
    assert 1e-5 < apart(latents, full) < 2e-2
    assert normal == {torch.float32}


def test_guidance_of_one_is_unguided(pair, make_batch):
    batch, drawn = make_batch(), []
    with torch.no_grad():
        for guidance in (1.0, 1.0 + 1e-9, 3.0):
            state = pair[1].start(batch, 4, guidance)
            sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance)
            drawn.append(pair[1].generate_chunk(state, sampling, torch.Generator().manual_seed(0)))
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert apart(drawn[1][0], drawn[0][0]) < 1e-2 < apart(drawn[2][0], drawn[0][0])


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_head_integrates_in_full_precision(objective):
    """Neither the tokens between steps nor the guided predictions are rounded to bf16."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=2, objective=objective)).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    half, drawn, inputs = copy.deepcopy(head), [], []
    to_bf16(half)
    half.denoiser.token.register_forward_pre_hook(lambda _, args: inputs.append(args[0]), prepend=True)
    condition = torch.randn(12, 4)
    with torch.no_grad():
        for model in (head, half):
            drawn.append(model.sample(condition, 50, 2.0, generator=torch.Generator().manual_seed(1)))
        denoiser, x = half.denoiser, torch.randn(6, 3)
        modulations = denoiser.modulate(denoiser.embed_times(torch.tensor([0.7])), denoiser.condition(condition))
        tokens = denoiser.token(x.repeat(2, 1))
        conditional, unconditional = denoiser.predict(tokens, modulations).float().chunk(2)
        expected = unconditional + 2.3 * (conditional - unconditional)
        assert torch.equal(denoiser.guided(x, modulations, 2.3), expected)
    assert {x.dtype for x in inputs} == {torch.float32}
    assert apart(drawn[1], drawn[0]) < 5e-2
    assert not torch.equal(drawn[1], drawn[1].bfloat16().float())


def test_a_cpu_does_not_use_bf16_by_default():
    assert not supports_bf16("cpu")
