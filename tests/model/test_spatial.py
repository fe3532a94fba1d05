"""The two variants of the spatial transformer: which tokens see which, in training and set by set."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.conftest import shape
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.masked import MaskedTransformer, draw_masked_count
from vidchat.model.rotary import rotate
from vidchat.model.set_causal import SetCausalTransformer, draw_set_count
from vidchat.model.spatial import (
    SpatialContext,
    SpatialTransformer,
    draw_order,
    gather_tokens,
    set_sizes,
    spatial_positions,
)

CONTEXT, TOKENS = 3, 9
KINDS = pytest.mark.parametrize("kind", [MaskedTransformer, SetCausalTransformer])


def make(kind: type[SpatialTransformer], layers: int = 4) -> SpatialTransformer:
    torch.manual_seed(0)
    return kind(shape(layers), 16, 5, ratio=1).eval()


def inputs(tokens: int = TOKENS) -> tuple[SpatialContext, Tensor, Tensor]:
    """The context of two chunks, an order, and true tokens."""
    generator = torch.Generator().manual_seed(1)

    def floats(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    context = SpatialContext(floats(2, CONTEXT, 16), floats(2, tokens, 16), floats(1, CONTEXT + tokens, 3))
    return context, draw_order(2, tokens, torch.device("cpu"), generator), floats(2, tokens, 5)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """The prefix, followed by the tokens in their order."""
    return torch.cat(
        [x[:, :CONTEXT].expand(len(order), -1, -1), gather_tokens(x[:, CONTEXT:].expand(len(order), -1, -1), order)], 1
    )


@pytest.mark.parametrize("tokens", [36, 64, 256, 1440])
@pytest.mark.parametrize("sets", [1, 8, 16, 64])
def test_sets_cover_every_token_once(tokens, sets):
    sizes = set_sizes(tokens, sets)
    assert sum(sizes) == tokens
    assert min(sizes) > 0
    assert len(sizes) <= sets
    assert sizes[0] <= sizes[-1], "few tokens first, many at the end"


def test_a_coarse_token_stands_at_the_centre_of_the_visual_tokens_it_covers():
    positions = spatial_positions((1, 1), 2, 4, 2, torch.device("cpu"))[0]
    assert positions[0].tolist() == [4, 0.5, 0.5]
    assert positions[1:3, 0].tolist() == [2, 4]
    assert positions[3:, 1:].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_mask_law():
    shares = torch.tensor([draw_masked_count(1000) / 1000 for _ in range(2000)])
    assert shares.min() >= 0.7
    assert shares.max() <= 1
    assert abs(shares.mean() - 0.867) < 0.01  # the mean of the truncated normal


def test_the_law_of_the_number_of_sets():
    """Log-uniform on [4, 64]; of few tokens, never more sets than these."""
    counts = torch.tensor([draw_set_count(1440) for _ in range(4000)])
    assert (counts.min(), counts.max()) == (4, 64)
    for bound in (5, 6, 8, 16, 32, 64):
        share = (counts < bound).float().mean().item()
        assert share == pytest.approx(math.log((bound - 0.5) / 4, 16), abs=0.03), "what is below the bound is rounded"
    assert {draw_set_count(6) for _ in range(200)} == {4, 5, 6}
    assert {draw_set_count(3) for _ in range(20)} == {3}


@KINDS
@torch.no_grad()
def test_each_decoded_set_equals_a_training_pass(kind):
    """Decoding set by set, given the true tokens, has the outputs of a training pass."""
    spatial, (context, order, tokens) = make(kind), inputs()
    decode, filled = spatial.start_decoding(context, order), 0
    sizes = set_sizes(TOKENS, 4)
    for size in sizes:
        unread = tokens.scatter(1, order[:, filled:, None].expand(-1, -1, 5), torch.nan)
        outputs = decode(unread, filled, size)
        if kind is SetCausalTransformer:
            expected = spatial(context, order, tokens, sizes)[:, filled : filled + size]
        else:
            expected = spatial(context, order, tokens, filled)[:, :size]
        torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)
        filled += size


@KINDS
@torch.no_grad()
def test_a_set_changes_later_sets_only(kind):
    """With other tokens in set s, the outputs for sets up to s are bit-equal, and those for later sets change."""
    spatial, (context, order, tokens) = make(kind), inputs()
    sizes, filled = set_sizes(TOKENS, 4), 0
    for index, size in enumerate(sizes):
        other = tokens.scatter(1, order[:, filled : filled + size, None].expand(-1, -1, 5), 7.0)
        passes = []
        for each in (tokens, other):
            decode, start, outputs = spatial.start_decoding(context, order), 0, []
            for length in sizes:
                outputs.append(decode(each, start, length))
                start += length
            passes.append(outputs)
        for later, (before, after) in enumerate(zip(*passes, strict=True)):
            same = torch.equal(before, after)
            assert same if later <= index else not torch.allclose(before, after, atol=1e-3)
        filled += size


# Masked


def test_masked_equals_attention_with_a_mask():
    """The first half on visible tokens equals the first half on all tokens with the masked ones hidden."""
    spatial, (context, order, tokens) = make(MaskedTransformer, 2), inputs()
    visible = 4
    with torch.no_grad():
        result = spatial(context, order, tokens, visible)
        x = torch.cat([context.prefix, spatial.token(tokens) + context.local], dim=1)
        seen = torch.zeros(2, CONTEXT + TOKENS, dtype=torch.bool)
        seen[:, :CONTEXT] = True
        seen.scatter_(1, CONTEXT + order[:, :visible], True)
        positions = context.positions.expand(2, -1, -1)
        encoded = spatial.encoder(x, positions, seen[:, None, None])
        hidden = ~seen[:, CONTEXT:]
        full = encoded.clone()
        full[:, CONTEXT:][hidden] = (spatial.mask_token + context.local)[hidden]
        expected = gather_tokens(spatial.decoder(full, positions)[:, CONTEXT:], order[:, visible:])
        first = spatial(context, order, tokens, visible, size=2)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first, expected[:, :2], atol=1e-5, rtol=1e-5)


def test_masked_does_not_see_masked_tokens():
    spatial, (context, order, tokens) = make(MaskedTransformer), inputs()
    tokens.requires_grad_()
    spatial(context, order, tokens, 4)[0].square().sum().backward()
    seen = tokens.grad.abs().sum(-1)[0] > 0
    assert set(seen.nonzero().flatten().tolist()) == set(order[0, :4].tolist())
    assert tokens.grad[1].eq(0).all()


# Set-causal


@pytest.mark.parametrize("sets", [1, 2, 4, 9])
@torch.no_grad()
def test_set_causal_equals_attention_with_a_mask(sets):
    """The first half is block-causal over sets; in the second, mask tokens attend to the outputs of the first."""
    spatial, (context, order, tokens) = make(SetCausalTransformer), inputs()
    sizes = set_sizes(TOKENS, sets)
    sets_of_tokens = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    blocks = torch.cat([torch.zeros(CONTEXT, dtype=torch.long), sets_of_tokens + 1])
    local = gather_tokens(context.local, order)
    positions = in_order(context.positions, order)
    x = torch.cat([context.prefix, spatial.token(gather_tokens(tokens, order)) + local], dim=1)
    encoded = spatial.encoder(x, positions, (blocks[:, None] >= blocks)[None, None])
    sees = sets_of_tokens[:, None] >= blocks  # set 0 sees block 0, the context
    outputs = spatial.mask_token + local
    angles = spatial.decoder.angles(positions)
    for layer in spatial.decoder.layers:
        attention = layer.self_attn
        q = attention._split(attention.q_proj(layer.input_layernorm(outputs)), attention.heads)
        k = attention._split(attention.k_proj(encoded), attention.kv_heads)
        v = attention._split(attention.v_proj(encoded), attention.kv_heads)
        q = rotate(attention.q_norm(q), (angles[0][:, :, CONTEXT:], angles[1][:, :, CONTEXT:]))
        k = rotate(attention.k_norm(k), angles)
        heads = F.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), sees[None, None]
        )
        outputs = outputs + attention.o_proj(heads.transpose(1, 2).flatten(2))
        outputs = outputs + layer.mlp(layer.post_attention_layernorm(outputs))
    result = spatial(context, order, tokens, sizes)
    torch.testing.assert_close(result, spatial.decoder.norm(outputs), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_predicted_tokens_do_not_affect_each_other():
    """A token has the same condition in any order and number of tokens of its set."""
    spatial, (context, order, tokens) = make(SetCausalTransformer), inputs()
    before = spatial.start_decoding(context, order)(tokens, 0, 4)
    shuffled = torch.cat([order[:, :4].flip(1), order[:, 4:]], dim=1)
    after = spatial.start_decoding(context, shuffled)(tokens, 0, 4)
    torch.testing.assert_close(after.flip(1), before, atol=1e-6, rtol=1e-5)
    alone = spatial.start_decoding(context, order)(tokens, 0, 1)
    torch.testing.assert_close(alone, before[:, :1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_token_is_read_once():
    """The first half reads the context and all sets but the last once; the second half has one query per token."""
    spatial, (context, order, tokens) = make(SetCausalTransformer), inputs()
    seen: dict[str, int] = {"encoder": 0, "decoder": 0}
    for name in seen:

        def add(module, args, out, name=name):
            seen[name] += out.shape[1]

        getattr(spatial, name).layers[0].mlp.register_forward_hook(add)
    decode, filled, sizes = spatial.start_decoding(context, order), 0, set_sizes(TOKENS, 5)
    for size in sizes:
        decode(tokens, filled, size)
        filled += size
    assert seen == {"encoder": CONTEXT + TOKENS - sizes[-1], "decoder": TOKENS}


@KINDS
def test_tokens_of_one_chunk_agree(kind):
    """A chunk is a pattern or its negative, so the first token drawn determines the others.

    Tokens drawn independently would agree by chance only. A leak of the true tokens in training would lower the loss,
    but fails here, as the sampler is given no true tokens.
    """
    tokens, generator = 6, torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    spatial, head = kind(shape(2), 16, 2, ratio=1), FlowHead(2, 16, FlowShape(width=32, blocks=2))
    positions = torch.cat([torch.zeros(1, 1, 3), torch.arange(tokens).float()[None, :, None].expand(-1, -1, 3)], dim=1)

    local = torch.randn(1, tokens, 16, generator=generator)
    pattern = torch.tensor([1.0, -1, -1, 1, -1, 1])[:, None]

    def context(count: int) -> SpatialContext:
        return SpatialContext(torch.ones(count, 1, 16), local.expand(count, -1, -1), positions)

    optimizer = torch.optim.Adam([*spatial.parameters(), *head.parameters()], 3e-3)
    for _ in range(500):
        sign = torch.randint(2, (64, 1, 1), generator=generator) * 2.0 - 1
        truth = sign * pattern + 0.1 * torch.randn(64, tokens, 2, generator=generator)
        condition, index = spatial.training_pass(context(64), truth)
        loss = head.loss(gather_tokens(truth, index).flatten(0, 1), condition.flatten(0, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        order, drawn, filled = draw_order(200, tokens, positions.device), torch.zeros(200, tokens, 2), 0
        decode = spatial.start_decoding(context(200), order)
        for size in (1, tokens - 1):
            condition = decode(drawn, filled, size)
            new = head.sample(condition.flatten(0, 1), 20, generator=generator).view(200, size, 2)
            drawn.scatter_(1, order[:, filled : filled + size, None].expand(-1, -1, 2), new)
            filled += size
    signs = (drawn * pattern).mean(-1).sign()
    agree = (signs == signs[:, :1]).all(1).float().mean()
    assert agree > 0.9, f"{agree:.2f} of the chunks agree with themselves"
    assert 0.3 < (signs[:, 0] > 0).float().mean() < 0.7, "both signs occur"


def test_guided_halves_fill_the_same_positions(make_responder, make_batch):
    """With equal halves, guidance does not change the chunk of the set-causal transformer."""
    model, batch = make_responder(set_causal=True).eval(), make_batch(padded=False)
    drawn = []
    with torch.no_grad():
        for guidance in (1.0, 3.0):
            state = model.start(batch, 4, guidance)
            if guidance != 1:
                state = replace(state, hidden=state.hidden[:2].repeat(2, 1, 1))
            model.depth.sample = lambda hidden, *rest: batch.codes[:, 0]
            sampling = ChunkSampling(sets=4, flow_steps=2, guidance=guidance)
            drawn.append(model.generate_chunk(state, sampling, torch.Generator().manual_seed(0))[0])
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-5)
