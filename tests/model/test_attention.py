from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from vidchat.model import attention
from vidchat.model.attention import attend
from vidchat.model.mask import BlockCausal


def draw(size: int, tokens: int, heads: int = 4, groups: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(size, tokens, n, 8) for n in (heads, groups, groups)]
    drawn = [torch.randn(shape, generator=generator).transpose(1, 2) for shape in shapes]
    return tuple(x.detach().requires_grad_() for x in drawn)


def layout(tokens: int, hidden: bool) -> BlockCausal:
    """Text token by token, then steps of 17 tokens; of 17 and 5 in turn; and of 40: each sample has its own.

    Some text, one step, and the start of one sample are hidden.
    """
    text, after = min(10, tokens), torch.arange(max(0, tokens - 10))
    steps = torch.stack([after // 17, after // 22 * 2 + (after % 22 >= 17), after // 40])
    visible = torch.ones(3, tokens, dtype=torch.bool)
    if hidden:
        visible[1, 5:8] = visible[1, 27:44] = visible[2, :61] = False
    return BlockCausal(torch.cat([torch.arange(text).expand(3, -1), text + steps], dim=1), visible)


@st.composite
def layouts(draw: st.DrawFn) -> BlockCausal:
    """Two or three samples of up to 200 tokens in steps of random sizes, some of whose tokens are hidden."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 32)))
    tokens, samples = draw(st.integers(1, 200)), draw(st.integers(1, 3))
    changes = torch.rand(samples, tokens, generator=generator) < draw(st.sampled_from([0.02, 0.2, 0.9]))
    visible = torch.rand(samples, tokens, generator=generator) < draw(st.sampled_from([0.5, 0.95, 1.0]))
    jumps = torch.randint(1, 4, (samples, tokens), generator=generator)  # a step may have no tokens
    return BlockCausal((changes * jumps).cumsum(1), visible)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(layouts(), st.data())
def test_random_layouts_are_the_dense_mask_by_every_backend(mask: BlockCausal, data: st.DataObject) -> None:
    samples, tokens = mask.visible.shape
    queries = data.draw(st.integers(1, tokens))
    heads, keys, values = (x.detach() for x in draw(samples, tokens))
    visible = mask.visible[:, None, -queries:, None]
    expected = attend(heads, keys, values, mask, backend="dense")[:, :, -queries:]
    for backend in ("spans", "flex"):
        ours = attend(heads[:, :, -queries:], keys, values, mask, backend=backend)
        torch.testing.assert_close(ours * visible, expected * visible, atol=1e-5, rtol=1e-5, msg=backend)
    same_tiles(mask.flex(queries), tokens, queries, samples)


def run(mask: BlockCausal, backend: str, tokens: int) -> list[torch.Tensor]:
    """Outputs and gradients; the gradient enters through visible tokens only, as in the model."""
    inputs = draw(3, tokens)
    out = attend(*inputs, mask, backend=backend) * mask.visible[:, None, :, None]
    (out * torch.linspace(-1, 1, tokens)[:, None]).sum().backward()
    return [out, *(x.grad for x in inputs)]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("tokens", [1, 9, 64, 100, 128, 200, 256])
def test_spans_are_the_dense_mask(tokens, hidden):
    mask = layout(tokens, hidden)
    for ours, theirs in zip(run(mask, "spans", tokens), run(mask, "dense", tokens), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("tokens", [100, 128, 200, 256])
def test_flex_is_the_dense_mask(tokens, hidden):
    """Uncompiled and without gradients, as only that runs on a CPU."""
    mask = layout(tokens, hidden)
    inputs = [x.detach() for x in draw(3, tokens)]
    visible = mask.visible[:, None, :, None]
    ours, theirs = (attend(*inputs, mask, backend=backend) * visible for backend in ("flex", "dense"))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(("tokens", "queries"), [(1, 1), (128, 91), (256, 256), (512, 475), (700, 700), (700, 350)])
def test_tiles_are_those_of_create_block_mask(tokens, queries, hidden):
    """Tiles read in part and in full, and their transposes for the backward pass."""
    same_tiles(layout(tokens, hidden).flex(queries), tokens, queries)


def same_tiles(ours: BlockMask, tokens: int, queries: int, samples: int = 3) -> None:
    theirs = create_block_mask(ours.mask_mod, samples, None, queries, tokens, device="cpu")
    assert ours.seq_lengths == theirs.seq_lengths
    for part in ("kv", "full_kv", "q", "full_q"):
        counts, order, expected = (
            getattr(mask, name)
            for mask, name in ((ours, f"{part}_num_blocks"), (ours, f"{part}_indices"), (theirs, f"{part}_num_blocks"))
        )
        assert torch.equal(counts, expected)
        assert counts.dtype == order.dtype == torch.int32
        used = torch.arange(order.shape[-1]) < counts[..., None]  # later entries are not read
        assert torch.equal(order[used], getattr(theirs, f"{part}_indices")[used])


def separate_queries(tokens: int, hidden: bool) -> BlockCausal:
    """Queries of four sets; the keys are a context of 40 tokens and the first three sets."""
    sizes = torch.tensor([tokens // 20, tokens // 8, tokens // 3])
    sets = torch.cat([torch.arange(3).repeat_interleave(sizes), torch.full((tokens - int(sizes.sum()),), 3)])
    blocks = torch.cat([torch.zeros(40, dtype=torch.long), 1 + sets[sets < 3]])
    visible = torch.ones(3, len(blocks), dtype=torch.bool)
    if hidden:
        visible[1, 5:9] = visible[2, 41:60] = False
    return BlockCausal(blocks[None], visible, queries=sets[None])


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("tokens", [20, 150, 600])
def test_queries_that_are_not_keys(tokens, hidden):
    """Each set sees the context and the sets before its own, by every backend, with its gradients."""
    mask = separate_queries(tokens, hidden)
    keys, results = mask.blocks.shape[1], {}
    earlier = mask.queries[0, :, None] >= mask.blocks[0]
    assert torch.equal(mask.dense()[:, 0], earlier & mask.visible[:, None]), "no token sees itself"
    for backend in ("dense", "spans"):
        inputs = draw(3, tokens)[:1] + draw(3, keys)[1:]
        out = attend(*inputs, mask, backend=backend)
        (out * torch.linspace(-1, 1, tokens)[:, None]).sum().backward()
        results[backend] = [out, *(x.grad for x in inputs)]
    torch.testing.assert_close(results["spans"], results["dense"], atol=1e-5, rtol=1e-5)
    inputs = [x.detach() for x in inputs]
    torch.testing.assert_close(attend(*inputs, mask, backend="flex"), results["dense"][0], atol=1e-5, rtol=1e-5)
    for backend in ("spans", "flex"):
        tail = attend(inputs[0][:, :, 7:], *inputs[1:], mask, backend=backend)
        torch.testing.assert_close(tail, results["dense"][0][:, :, 7:], atol=1e-5, rtol=1e-5)
    same_tiles(mask.flex(tokens), keys, tokens)


def test_flex_is_compiled_once_for_all_lengths(monkeypatch):
    """The first length has as many tiles as neither samples nor heads; equal numbers would cause a recompilation."""
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(attention, "_flex", lambda device: compiled)
    for tokens, queries in [(700, 600), (1000, 700), (640, 603), (300, 263)]:
        mask = layout(tokens, hidden=True)
        heads, keys, values = (x.detach() for x in draw(3, tokens))
        ours, theirs = (attend(heads[:, :, -queries:], keys, values, mask, backend=name) for name in ("flex", "dense"))
        visible = mask.visible[:, None, -queries:, None]
        torch.testing.assert_close(ours * visible, theirs * visible, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


def test_attention_equals_its_definition():
    """Softmax over the visible keys, computed in float64 by definition."""
    mask = layout(60, hidden=True)
    queries, keys, values = draw(3, 60)
    ours = attend(queries, keys, values, mask)
    q, k, v = (x.detach().double().numpy() for x in (queries, keys, values))
    blocks, visible = mask.blocks.tolist(), mask.visible.tolist()
    for sample, head, query in [(0, 0, 0), (0, 3, 59), (1, 1, 30), (1, 2, 59), (2, 0, 59)]:
        if not visible[sample][query]:
            continue
        own = blocks[sample]
        seen = [j for j in range(60) if own[j] <= own[query] and visible[sample][j]]
        scores = torch.tensor(k[sample, head // 2, seen] @ q[sample, head, query]) / 8**0.5
        expected = scores.softmax(0) @ torch.tensor(v[sample, head // 2, seen])
        torch.testing.assert_close(ours[sample, head, query].double(), expected, atol=1e-6, rtol=1e-5)


def test_hidden_tokens_have_no_effect():
    """Visible outputs are bit-equal whatever the values of hidden tokens, even if they are enormous."""
    mask = layout(100, hidden=True)
    queries, keys, values = (x.detach() for x in draw(3, 100))
    before = attend(queries, keys, values, mask)
    hidden = ~mask.visible[:, None, :, None]
    after = attend(queries, keys.masked_fill(hidden, 1e4), values.masked_fill(hidden, 1e4), mask)
    assert torch.equal(before.masked_fill(hidden, 0), after.masked_fill(hidden, 0))
    assert after.isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_without_copies(masked):
    """Queries that share a key head are folded into one longer sequence."""
    queries, keys, values = draw(2, 30)
    seen = torch.ones(2, 1, 1, 30, dtype=torch.bool)
    if masked:
        seen[1, ..., 20:] = False
    folded = attend(queries[:, :, :7], keys, values, seen if masked else None)
    copied = attend(queries[:, :, :7], keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1), seen)
    torch.testing.assert_close(folded, copied, atol=1e-6, rtol=1e-6)


def test_bf16_goes_through_spans():
    mask = layout(200, hidden=True)
    inputs = [x.detach().bfloat16().requires_grad_() for x in draw(3, 200)]
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*inputs, mask)
    out.float().square().sum().backward()
    theirs = attend(*(x.float() for x in inputs), mask, backend="dense")
    visible = mask.visible[:, None, :, None]
    torch.testing.assert_close(out.float() * visible, theirs * visible, atol=3e-2, rtol=3e-2)


def test_an_unsupported_backend_is_refused():
    inputs = draw(3, 40)
    with pytest.raises(ValueError, match="no backward on cpu"):
        attend(*inputs, layout(40, False), backend="flex")
    with pytest.raises(ValueError, match="vidchat\\[flash\\]"):
        attend(*inputs, backend="flash")


@pytest.mark.parametrize("backend", ["spans", "flex", "dense"])
@pytest.mark.parametrize("queries", [1, 39, 64, 199])
def test_the_last_queries_alone(backend, queries):
    """The outputs of the last queries are the last outputs, wherever they start."""
    mask = layout(200, hidden=True)
    inputs = [x.detach() for x in draw(3, 200)]
    expected = attend(*inputs, mask, backend="dense")[:, :, -queries:]
    tail = attend(inputs[0][:, :, -queries:], *inputs[1:], mask, backend=backend)
    visible = mask.visible[:, None, -queries:, None]
    torch.testing.assert_close(tail * visible, expected * visible, atol=1e-5, rtol=1e-5)


def test_gradients_of_a_tail():
    mask = layout(200, hidden=True)
    gradients = []
    for backend in ("spans", "dense"):
        inputs = draw(3, 200)
        (attend(inputs[0][:, :, -90:], *inputs[1:], mask, backend=backend) * torch.linspace(-1, 1, 8)).sum().backward()
        gradients.append([x.grad for x in inputs])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_flex_mask_serves_any_number_of_queries():
    """Block masks are cached for the layers of a step, one per number of queries."""
    mask = layout(100, hidden=False)
    queries, keys, values = (x.detach() for x in draw(3, 100))
    for count in (100, 30, 100):
        ours, theirs = (
            attend(queries[:, :, -count:], keys, values, mask, backend=backend) for backend in ("flex", "dense")
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
