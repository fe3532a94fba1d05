"""The generation loop: its speed on a device, and its state when a conversation continues."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.model.conftest import CODES, conditioning
from vidchat.batch import INITIATOR
from vidchat.model import flow
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.graphs import CapturedLoops, bucket
from vidchat.model.spatial import set_sizes


def turn(chunks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, chunks, 3, 4, 4, generator=generator)
    return latents, torch.randint(CODES.vocabulary, (2, chunks, 4, 2), generator=generator)


def uncached_outputs(model, batch, turns: list[tuple[torch.Tensor, torch.Tensor | None, int]]) -> torch.Tensor:
    """Uncached backbone outputs for condition, reference and turns (latents, codes, role), one after another."""
    condition = model._encode_conditions(batch, torch.ones(2, dtype=torch.bool))
    embedded = [
        model._embed(latents, codes, latents.new_zeros(latents.shape[:2]), with_reference=codes is None, role=role)
        for latents, codes, role in [(batch.latents[:, :1], None, 1), *turns]
    ]
    history = torch.cat(embedded, dim=1)
    chunks, tokens = history.shape[1:3]
    positions = model._positions(condition.end, torch.arange(chunks), (2, 2)).flatten(1, 2)
    out = model.backbone(
        torch.cat([condition.tokens, history.flatten(1, 2)], dim=1),
        torch.cat([condition.positions, positions], dim=1),
        model._mask(condition, history),
    )
    return out[:, condition.tokens.shape[1] :].unflatten(1, (chunks, tokens))


def converse(model, batch, guidance: float = 1.0):
    """An answer of 3 chunks, 2 chunks heard, an answer of 2 chunks: outputs at every chunk."""
    said, heard, again = turn(3, 1), turn(2, 2), turn(2, 3)
    state = model.prefill(batch, 20, guidance)
    outputs = [state.hidden]
    for (latents, codes), append in (
        (said, model.append_chunk),
        (heard, model.append_heard_chunk),
        (again, model.append_chunk),
    ):
        if latents is again[0]:
            state = model.restart(state, batch.latents[:, 0])
            outputs.append(state.hidden)
        for t in range(latents.shape[1]):
            state = append(state, latents[:, t], codes[:, t])
            outputs.append(state.hidden)
    return torch.stack(outputs, dim=1), (said, heard, again)


@pytest.mark.parametrize("padded", [False, True])
def test_the_cache_carries_over_to_the_next_turn(make_responder, make_batch, padded):
    model, batch = make_responder().eval(), make_batch(padded=padded)
    with torch.no_grad():
        cached, (said, heard, again) = converse(model, batch)
        reference = (batch.latents[:, :1], None, 1)
        uncached = uncached_outputs(model, batch, [(*said, 1), (*heard, INITIATOR), reference, (*again, 1)])
    assert cached.shape == uncached.shape == (2, 9, 8, 16)
    torch.testing.assert_close(cached, uncached, atol=1e-5, rtol=1e-5)


def test_the_unconditional_half_hears_nothing(make_responder, make_batch):
    """Heard chunks change the conditional half only; earlier turns are dropped with them, as in training."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    with torch.no_grad():
        cached, (_, _, again) = converse(model, batch, guidance=2.0)
        plain, _ = converse(model, batch)
        torch.testing.assert_close(cached[:2], plain, atol=1e-5, rtol=1e-5)
        # The same answer after the reference alone: only the elapsed time remains.
        state = model.prefill(batch, 20, 2.0)
        state.chunk = 5
        state = model.restart(state, batch.latents[:, 0])
        torch.testing.assert_close(cached[2:, 6], state.hidden[2:], atol=1e-5, rtol=1e-5)
        for t in range(2):
            state = model.append_chunk(state, again[0][:, t], again[1][:, t])
            torch.testing.assert_close(cached[2:, 7 + t], state.hidden[2:], atol=1e-5, rtol=1e-5)


def test_the_next_answer_starts_from_its_own_reference(make_responder, make_batch):
    """The new reference is both chunk 0 and the last chunk of the state."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    with torch.no_grad():
        state = model.append_chunk(model.prefill(batch, 20), batch.latents[:, 1], batch.codes[:, 0])
        assert torch.equal(state.last, batch.latents[:, 1])
        again = model.restart(state, -batch.latents[:, 0])
    assert torch.equal(again.reference, -batch.latents[:, 0])
    assert torch.equal(again.last, -batch.latents[:, 0])
    assert again.chunk == 2


def test_a_model_that_does_not_listen_says_so(make_responder, make_batch):
    model, batch = make_responder(conditions=conditioning(text=True)).eval(), make_batch()
    with torch.no_grad(), pytest.raises(ValueError, match="does not listen"):
        model.append_heard_chunk(model.prefill(batch, 4), batch.latents[:, 1], batch.codes[:, 0])


class _Concatenated(TorchDispatchMode):
    """Records the sizes of all concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.stack):
            self.sizes.append(out.shape)
        return out


@pytest.mark.parametrize("set_causal", [False, True])
def test_nothing_grows_by_concatenation(make_responder, make_batch, set_causal):
    """Concatenations for chunk 9 have the sizes of those for chunk 2; the past is in the ring."""
    model, batch = make_responder(set_causal=set_causal).eval(), make_batch(padded=False)
    sampling = ChunkSampling(sets=3, flow_steps=2)
    seen = []
    with torch.no_grad():
        state = model.prefill(batch, 4)
        for _ in range(9):
            with _Concatenated() as mode:
                latents, codes = model.generate_chunk(state, sampling)
                state = model.append_chunk(state, latents, codes)
            seen.append(mode.sizes)
    assert seen[1] == seen[8]  # the first chunk also fills caches that serve all chunks
    assert max(size[1] for size in seen[1] if len(size) == 3) <= 2 * (4 + 4 + 16), "a chunk's own tokens only"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_a_captured_loop_equals_the_plain_loop(count, guidance):
    """The function that becomes a CUDA graph, padded to its bucket, returns what the plain loop returns."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=2)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    condition = torch.randn(count if guidance == 1 else 2 * count, 4)
    noise = torch.randn(count, 3)
    with torch.no_grad():
        plain = head.integrate(noise, condition, 6, guidance)
        captured = CapturedLoops().run_padded(head.integrate, noise, condition, 6, guidance)
        torch.testing.assert_close(captured, plain, atol=1e-6, rtol=1e-5)
        generator = torch.Generator().manual_seed(3)
        drawn = head.sample(condition, 6, guidance, generator=generator)
        noise = torch.randn(count, 3, generator=generator.manual_seed(3))
        assert torch.equal(drawn, head.integrate(noise, condition, 6, guidance)), "all randomness is in the noise"


def test_few_shapes_serve_all_set_sizes():
    """NOVA's defaults: 30 set sizes, 6 buckets, none of which wastes more than half."""
    sizes = set(set_sizes(1440, 64))
    assert len(sizes) == 30
    buckets = {bucket(size) for size in sizes}
    assert len(buckets) <= 6
    assert all(size <= bucket(size) < 2 * size for size in sizes)


def test_projecting_the_condition_once_equals_training():
    """The sampler projects the condition once; the training path does it for every token and time."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=2)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition = torch.randn(5, 3), torch.randn(10, 4)
    with torch.no_grad():
        time = head.denoiser.embed_times(torch.tensor([0.7]))
        shared = head.denoiser.guided(x, head.denoiser.modulate(time, head.denoiser.condition(condition)), 2.0)
        conditional, unconditional = (head.denoiser(x, torch.full((5,), 0.7), half) for half in condition.chunk(2))
    torch.testing.assert_close(shared, unconditional + 2.0 * (conditional - unconditional))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("rows", [1, 12, 1000])
def test_steps_computed_at_once_equal_single_steps(monkeypatch, guidance, rows):
    """One, two or all eight evaluations share a product; compared with single evaluations."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=2)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, condition = torch.randn(5, 3), torch.randn(5 if guidance == 1 else 10, 4)
    monkeypatch.setattr(flow, "ROWS", rows)
    with torch.no_grad():
        drawn, expected = head.integrate(x, condition, 8, guidance), x

        def velocity(x: torch.Tensor, time: float) -> torch.Tensor:
            halves = [head.denoiser(x, torch.full((5,), time), half) for half in condition.split(5)]
            return halves[0] if guidance == 1 else halves[1] + guidance * (halves[0] - halves[1])

        for start, end in ((1, 3 / 5), (3 / 5, 1 / 3), (1 / 3, 1 / 7), (1 / 7, 0)):  # u / (2 - u) for u = 1, 3/4, ...
            middle = expected - velocity(expected, start) * (start - end) / 2
            expected = expected - velocity(middle, (start + end) / 2) * (start - end)
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-5)
