"""The generation loop: nothing in it grows, and it may be captured."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidchat.model import flow
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.graphs import CapturedLoops, bucket
from vidchat.model.spatial import set_sizes


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
    """Concatenations in step 9 have the sizes of those in step 5; the past is in the ring."""
    model, batch = make_responder(set_causal=set_causal).eval(), make_batch(padded=False)
    sampling = ChunkSampling(sets=3, flow_steps=2)
    seen = []
    with torch.no_grad():
        state = model.start(batch, 2, undo=1)
        heard = Chunk(batch.heard_latents[:, 0], batch.heard_codes[:, 0])
        for _ in range(9):
            with _Concatenated() as mode:
                state = model.read_step(state, model.generate_chunk(state, sampling), heard)
            seen.append(mode.sizes)
    assert seen[1] == seen[2]  # the first step also fills caches that serve all steps
    assert seen[4] == seen[8], "from the fourth step on, the pinned keys are moved"
    assert max(size[1] for size in seen[1] if len(size) == 3) <= 2 * (4 + 4 + 16), "a step's own tokens only"


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
