"""The two kinds of the spatial transformer: what sees what, in training and set by set."""

from __future__ import annotations

import math

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
    """A page of two chunks, an order, and true tokens."""
    generator = torch.Generator().manual_seed(1)

    def floats(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    page = SpatialContext(floats(2, CONTEXT, 16), floats(2, tokens, 16), floats(1, CONTEXT + tokens, 3))
    return page, draw_order(2, tokens, torch.device("cpu"), generator), floats(2, tokens, 5)


def in_order(x: Tensor, order: Tensor) -> Tensor:
    """Context first, as it is, then the tokens in their order."""
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


def test_spatial_positions_put_a_coarse_token_amid_its_children():
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
def test_one_set_is_one_pass(kind):
    """Filled in set by set with the true tokens, each set is asked for as a training pass asks for it."""
    spatial, (page, order, tokens) = make(kind), inputs()
    ask, filled = spatial.start_decoding(page, order), 0
    sizes = set_sizes(TOKENS, 4)
    for size in sizes:
        unread = tokens.scatter(1, order[:, filled:, None].expand(-1, -1, 5), torch.nan)
        asked = ask(unread, filled, size)
        if kind is SetCausalTransformer:
            expected = spatial(page, order, tokens, sizes)[:, filled : filled + size]
        else:
            expected = spatial(page, order, tokens, filled)[:, :size]
        torch.testing.assert_close(asked, expected, atol=1e-5, rtol=1e-5)
        filled += size


@KINDS
@torch.no_grad()
def test_a_later_set_moves_no_earlier_one(kind):
    """Other tokens in set s: what is asked of sets up to s stays, bit for bit, and what comes after moves."""
    spatial, (page, order, tokens) = make(kind), inputs()
    sizes, filled = set_sizes(TOKENS, 4), 0
    for index, size in enumerate(sizes):
        other = tokens.scatter(1, order[:, filled : filled + size, None].expand(-1, -1, 5), 7.0)
        passes = []
        for each in (tokens, other):
            ask, at, parts = spatial.start_decoding(page, order), 0, []
            for own in sizes:
                parts.append(ask(each, at, own))
                at += own
            passes.append(parts)
        for later, (before, after) in enumerate(zip(*passes, strict=True)):
            same = torch.equal(before, after)
            assert same if later <= index else not torch.allclose(before, after, atol=1e-3)
        filled += size


# Masked


def test_masked_equals_attention_with_a_mask():
    """The first half on visible tokens only is the full half with the masked tokens hidden from attention."""
    spatial, (page, order, tokens) = make(MaskedTransformer, 2), inputs()
    visible = 4
    with torch.no_grad():
        result = spatial(page, order, tokens, visible)
        x = torch.cat([page.context, spatial.token(tokens) + page.places], dim=1)
        seen = torch.zeros(2, CONTEXT + TOKENS, dtype=torch.bool)
        seen[:, :CONTEXT] = True
        seen.scatter_(1, CONTEXT + order[:, :visible], True)
        positions = page.positions.expand(2, -1, -1)
        encoded = spatial.encoder(x, positions, seen[:, None, None])
        hidden = ~seen[:, CONTEXT:]
        full = encoded.clone()
        full[:, CONTEXT:][hidden] = (spatial.mask_token + page.places)[hidden]
        expected = gather_tokens(spatial.decoder(full, positions)[:, CONTEXT:], order[:, visible:])
        some = spatial(page, order, tokens, visible, wanted=2)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some, expected[:, :2], atol=1e-5, rtol=1e-5)


def test_masked_does_not_see_masked_tokens():
    spatial, (page, order, tokens) = make(MaskedTransformer), inputs()
    tokens.requires_grad_()
    spatial(page, order, tokens, 4)[0].square().sum().backward()
    seen = tokens.grad.abs().sum(-1)[0] > 0
    assert set(seen.nonzero().flatten().tolist()) == set(order[0, :4].tolist())
    assert tokens.grad[1].eq(0).all()


# Set-causal


@pytest.mark.parametrize("sets", [1, 2, 4, 9])
@torch.no_grad()
def test_set_causal_equals_attention_with_a_mask(sets):
    """Written out: the first half block-causal over sets, then a query to each place on the first half's outputs."""
    spatial, (page, order, tokens) = make(SetCausalTransformer), inputs()
    sizes = set_sizes(TOKENS, sets)
    own = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    blocks = torch.cat([torch.zeros(CONTEXT, dtype=torch.long), own + 1])
    places = gather_tokens(page.places, order)
    turned = in_order(page.positions, order)
    x = torch.cat([page.context, spatial.token(gather_tokens(tokens, order)) + places], dim=1)
    encoded = spatial.encoder(x, turned, (blocks[:, None] >= blocks)[None, None])
    sees = own[:, None] >= blocks  # set 0 sees block 0, the context
    asked = spatial.mask_token + places
    angles = spatial.decoder.angles(turned)
    for layer in spatial.decoder.layers:
        read = layer.self_attn
        q = read._split(read.q_proj(layer.input_layernorm(asked)), read.heads)
        k, v = (read._split(project(encoded), read.kv_heads) for project in (read.k_proj, read.v_proj))
        q, k = read.q_norm(q), read.k_norm(k)
        q, k = (turn(x, angles, part) for x, part in ((q, slice(CONTEXT, None)), (k, slice(None))))
        heads = F.scaled_dot_product_attention(
            q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), sees[None, None]
        )
        asked = asked + read.o_proj(heads.transpose(1, 2).flatten(2))
        asked = asked + layer.mlp(layer.post_attention_layernorm(asked))
    result = spatial(page, order, tokens, sizes)
    torch.testing.assert_close(result, spatial.decoder.norm(asked), atol=1e-5, rtol=1e-5)


def turn(x: Tensor, angles: tuple[Tensor, Tensor], part: slice) -> Tensor:
    return rotate(x, (angles[0][:, :, part], angles[1][:, :, part]))


@torch.no_grad()
def test_what_is_asked_for_changes_no_other_answer():
    """Tokens of a set come in any order, or with others or without: each has the same condition."""
    spatial, (page, order, tokens) = make(SetCausalTransformer), inputs()
    before = spatial.start_decoding(page, order)(tokens, 0, 4)
    shuffled = torch.cat([order[:, :4].flip(1), order[:, 4:]], dim=1)
    after = spatial.start_decoding(page, shuffled)(tokens, 0, 4)
    torch.testing.assert_close(after.flip(1), before, atol=1e-6, rtol=1e-5)
    alone = spatial.start_decoding(page, order)(tokens, 0, 1)
    torch.testing.assert_close(alone, before[:, :1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_token_is_read_once():
    """In N sets as many tokens go through each half as in one pass: the context and all but the last set, and all."""
    spatial, (page, order, tokens) = make(SetCausalTransformer), inputs()
    seen: dict[str, int] = {"encoder": 0, "decoder": 0}
    for name in seen:

        def add(module, args, out, name=name):
            seen[name] += out.shape[1]

        getattr(spatial, name).layers[0].mlp.register_forward_hook(add)
    ask, filled, sizes = spatial.start_decoding(page, order), 0, set_sizes(TOKENS, 5)
    for size in sizes:
        ask(tokens, filled, size)
        filled += size
    assert seen == {"encoder": CONTEXT + TOKENS - sizes[-1], "decoder": TOKENS}


@KINDS
def test_tokens_of_one_chunk_agree(kind):
    """A chunk is one of two patterns, the other's negative: the first token drawn decides for the others.

    Drawn independently they would agree as often as coins do; a leak of the true tokens in training would not show in
    the loss, but here: the sampler has no true tokens to look at.
    """
    tokens, generator = 6, torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    spatial, head = kind(shape(2), 16, 2, ratio=1), FlowHead(2, 16, FlowShape(width=32, blocks=2))
    positions = torch.cat([torch.zeros(1, 1, 3), torch.arange(tokens).float()[None, :, None].expand(-1, -1, 3)], dim=1)

    places = torch.randn(1, tokens, 16, generator=generator)
    pattern = torch.tensor([1.0, -1, -1, 1, -1, 1])[:, None]

    def page(count: int) -> SpatialContext:
        return SpatialContext(torch.ones(count, 1, 16), places.expand(count, -1, -1), positions)

    optimizer = torch.optim.Adam([*spatial.parameters(), *head.parameters()], 3e-3)
    for _ in range(500):
        sign = torch.randint(2, (64, 1, 1), generator=generator) * 2.0 - 1
        truth = sign * pattern + 0.1 * torch.randn(64, tokens, 2, generator=generator)
        condition, index = spatial.training_pass(page(64), truth)
        loss = head.loss(gather_tokens(truth, index).flatten(0, 1), condition.flatten(0, 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        order, drawn, filled = draw_order(200, tokens, positions.device), torch.zeros(200, tokens, 2), 0
        ask = spatial.start_decoding(page(200), order)
        for size in (1, tokens - 1):
            condition = ask(drawn, filled, size)
            new = head.sample(condition.flatten(0, 1), 20, generator=generator).view(200, size, 2)
            drawn.scatter_(1, order[:, filled : filled + size, None].expand(-1, -1, 2), new)
            filled += size
    signs = (drawn * pattern).mean(-1).sign()
    agree = (signs == signs[:, :1]).all(1).float().mean()
    assert agree > 0.9, f"{agree:.2f} of the chunks agree with themselves"
    assert 0.3 < (signs[:, 0] > 0).float().mean() < 0.7, "both signs come"


def test_guided_halves_fill_the_same_places(make_responder, make_batch):
    """With guidance, set-causal writing is what it is without where both halves are given the same."""
    model, batch = make_responder(set_causal=True).eval(), make_batch(padded=False)
    drawn = []
    with torch.no_grad():
        for guidance in (1.0, 3.0):
            state = model.prefill(batch, 4, guidance)
            if guidance != 1:
                state.hidden = state.hidden[:2].repeat(2, 1, 1)
            model.depth.sample = lambda hidden, *rest: batch.codes[:, 0]
            sampling = ChunkSampling(sets=4, flow_steps=2, guidance=guidance)
            drawn.append(model.generate_chunk(state, sampling, torch.Generator().manual_seed(0))[0])
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-5)
