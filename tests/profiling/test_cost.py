"""Formulas of cost against what a small model is measured to do."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.model.conftest import shape
from vidchat.batch import ChunkBatch
from vidchat.cli import app
from vidchat.cli.model import CONFIGS, build
from vidchat.model import masked, set_causal
from vidchat.model.chunks import LatentShape, TokenShapes
from vidchat.model.conditions import ConditionSwitches
from vidchat.model.depth import CodeSampling
from vidchat.model.flow import FlowShape
from vidchat.model.mask import BlockCausal
from vidchat.model.objective import Objective
from vidchat.model.reading import ChunkSampling
from vidchat.model.responder import Responder
from vidchat.model.spatial import set_sizes
from vidchat.model.transformer import Shape
from vidchat.profiling import cost
from vidchat.profiling.memory import MARGIN, peak_training_bytes

WORK = cost.Workload(grid=(8, 8), chunks=4, turns=3, text=5, batch=2, window=6, sets=3, flow_steps=2)
CHUNK, FINE = 16 + 4, 64  # tokens of a chunk in the backbone, and in the spatial transformer
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def a_batch() -> ChunkBatch:
    torch.manual_seed(0)
    ones = torch.ones(2, 5, dtype=torch.bool)
    return ChunkBatch(
        latents=torch.randn(2, 5, 3, 8, 8), chunk_mask=ones[:, :4], codes=torch.randint(16, (2, 4, 4, 2)),
        text_ids=torch.randint(11, (2, 5)), text_mask=ones, turn_latents=torch.randn(2, 3, 3, 8, 8),
        turn_codes=torch.randint(16, (2, 3, 4, 2)), turn_roles=torch.zeros(2, 3, dtype=torch.long),
        turn_mask=ones[:, :3],
    )  # fmt: skip


@pytest.fixture
def mean_draws(monkeypatch):
    monkeypatch.setattr(masked, "draw_masked_count", lambda tokens: round(tokens * cost.MASKED))
    monkeypatch.setattr(set_causal, "draw_set_count", lambda tokens: cost.SETS)


@pytest.fixture(params=[False, True], ids=["masked", "set_causal"])
def model(make_responder, mean_draws, request):
    conditions = ConditionSwitches(text=True, turns=True, drop=0.0)
    flow = FlowShape(width=24, blocks=2, draws=6, noises=2)
    # Two layers to each half, of which the second computes what is wanted alone.
    return make_responder(conditions=conditions, flow=flow, spatial=shape(4), set_causal=request.param)


def count(function) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    by_kind = counter.get_flop_counts()["Global"]
    return sum(flops for kind, flops in by_kind.items() if kind in PRODUCTS)


def attention_flops(shape: Shape, pairs: int, last: int) -> float:
    return 4 * shape.heads * shape.head_dim * ((shape.layers - 1) * pairs + last)


def set_causal_pairs(sets: list[int]) -> tuple[int, int]:
    """Pairs of tokens that are read, and of those that are asked for with what they read."""
    blocks = torch.tensor([0] * CHUNK + [i + 1 for i, size in enumerate(sets) for _ in range(size)])
    known = blocks[: CHUNK + FINE - sets[-1]]
    ones = torch.ones(1, len(known), dtype=torch.bool)
    read, asked = (BlockCausal(known, ones, readers).dense().sum() for readers in (None, blocks[CHUNK:] - 1))
    return int(read), int(asked)


def test_training_operations(model):
    """Products alone; attention, whose kernel the counter does not know on a CPU, is tested by its pairs."""
    model.train()
    batch = a_batch()
    measured = count(lambda: model.loss(batch)["loss"])
    forward = {name: flops / 3 for name, flops in cost.training_flops(model, WORK).items()}
    blocks = [1] * 5 + [CHUNK] * 7
    wanted = cost.causal_pairs(blocks) - cost.causal_pairs(blocks[:8])
    hidden, steps = round(FINE * cost.MASKED), 8
    attention = attention_flops(model.backbone.shape, cost.causal_pairs(blocks), wanted)
    attention += 4 * attention_flops(model.depth.transformer.shape, steps * (steps + 1) // 2, steps * (steps + 1) // 2)
    encoder, decoder = model.spatial.encoder.shape, model.spatial.decoder.shape
    if isinstance(model.spatial, set_causal.SetCausalTransformer):
        read, asked = set_causal_pairs(set_sizes(FINE, cost.SETS))
        attention += 4 * (attention_flops(encoder, read, read) + attention_flops(decoder, asked, asked))
    else:
        known, everything = CHUNK + FINE - hidden, CHUNK + FINE
        attention += 4 * attention_flops(encoder, known**2, known**2)
        attention += 4 * attention_flops(decoder, everything**2, hidden * everything)
    assert measured == pytest.approx(sum(forward.values()) - 2 * attention, rel=0.01)


def test_generation_operations(model):
    model.eval()
    batch, work = a_batch().first(1), WORK
    with torch.no_grad():
        reading = model.begin(batch, work.window)
        sampling = ChunkSampling(sets=3, flow_steps=2, codes=CodeSampling(temperature=0))

        def chunk() -> None:
            read = model.read_chunk(reading, batch.latents[:, 1], batch.codes[:, 0])
            model.write_chunk(read, sampling)

        measured = count(chunk)
    formula = cost.generation_work(model, work)
    seen = 5 + CHUNK * (3 + 1 + 6 + 1)
    attention = attention_flops(model.backbone.shape, CHUNK * seen, CHUNK * seen)
    attention += attention_flops(model.depth.transformer.shape, 36, 36)
    encoder, decoder, sets = model.spatial.encoder.shape, model.spatial.decoder.shape, set_sizes(FINE, 3)
    if isinstance(model.spatial, set_causal.SetCausalTransformer):
        read, asked = set_causal_pairs(sets)
        attention += attention_flops(encoder, read, read) + attention_flops(decoder, asked, asked)
    else:
        known, everything = CHUNK, CHUNK + FINE
        for size in sets:
            attention += attention_flops(encoder, known**2, known**2)
            attention += attention_flops(decoder, everything**2, size * everything)
            known += size
    embed = 2 * model.embed.visual.weight.numel() * 16 + cost.linear_flops(model.noise.embed)
    assert measured == pytest.approx(sum(part.flops for part in formula.values()) - attention + embed, rel=0.01)


def test_pairs_are_those_of_the_mask():
    blocks = [1, 1, 1, 8, 8, 3]
    mask = BlockCausal(torch.repeat_interleave(torch.arange(6), torch.tensor(blocks)), torch.ones(1, 22).bool())
    assert cost.causal_pairs(blocks) == int(mask.dense().sum())


@pytest.mark.parametrize("noises", [1, 4])
@pytest.mark.parametrize("set_causal", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("mean_draws")
def test_peak_memory(make_responder, recompute, set_causal, noises):
    """Within a sixth of what a training step is measured to allocate at its peak."""
    wide = Shape(64, 4, 4, 2, 16, 192, recompute=recompute)
    model = make_responder(
        backbone=wide, spatial=wide, depth=wide, flow=FlowShape(width=64, blocks=3, noises=noises),
        conditions=ConditionSwitches(text=True, turns=True, drop=0.0), set_causal=set_causal,
    ).train()  # fmt: skip
    batch = a_batch()
    batch.latents, batch.chunk_mask = torch.randn(2, 21, 3, 8, 8), torch.ones(2, 20, dtype=torch.bool)
    batch.codes = torch.randint(16, (2, 20, 4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            model.loss(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # below 0 when freed
    measured = 4 * sum(p.numel() for p in model.parameters()) + max(itertools.accumulate(sizes))
    work = cost.Workload(grid=(8, 8), chunks=20, turns=3, text=5, batch=2)
    expected = peak_training_bytes(model, work, average=False)
    assert expected == pytest.approx(measured, rel=1 / 6), expected / measured


H100 = {  # GB that training steps were measured to take at their peak, batch 1, bf16-mixed
    "base": (44.0, cost.Workload((60, 96), 25, 25)),
    "nova": (34.0, cost.Workload((60, 96), 8, 0, 258)),
}


def nova() -> Responder:
    """The model that benchmarks/nova.py compares with NOVA, at NOVA's full shapes, without memory."""

    def stack(layers: int) -> Shape:
        return Shape(width=1024, layers=layers, heads=16, kv_heads=16, head_dim=64, mlp_width=2731)

    with torch.device("meta"):
        return Responder(
            TokenShapes(LatentShape(4, 4)), stack(16), FlowShape(1280, 3, noises=4), stack(32),
            conditions=ConditionSwitches(features=2048), patch=2, ratio=2,
        )  # fmt: skip


@pytest.mark.parametrize("name", H100)
def test_peak_memory_in_mixed_precision_is_what_a_gpu_was_measured_to_take(name):
    measured, work = H100[name]
    model = nova() if name == "nova" else build("base", "480x768", "wan21", "encodec_24khz")[0]
    model.objective = Objective()  # measured on all chunks
    peak = peak_training_bytes(model, work, 2, average=name == "base", recompute=name == "base")
    assert peak / 1e9 < measured < MARGIN * 1.01 * peak / 1e9


def test_a_set_causal_chunk_costs_the_same_in_however_many_sets(make_responder):
    """But for the last set, which nobody reads; the masked transformer computes all anew for each."""
    masked, causal = (make_responder(spatial=shape(4), set_causal=kind) for kind in (False, True))
    few, many = (
        [cost.generation_work(model, replace(WORK, sets=sets))["spatial"].flops for model in (masked, causal)]
        for sets in (4, 16)
    )
    assert many[0] > 3.5 * few[0]
    assert many[1] < 1.25 * few[1]


def test_recomputing_changes_no_gradient(make_responder, make_batch):
    gradients = []
    for recompute in (False, True):
        stack = Shape(**{**vars(shape()), "recompute": recompute})
        model = make_responder(backbone=stack, spatial=stack, depth=stack).train()
        torch.manual_seed(4)
        model.loss(make_batch())["loss"].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-6, rtol=1e-5)


def test_the_base_model_is_as_large_as_the_paper_s():
    arguments = ["model", "describe", "--model", "base", "--size", "480x768", "--video", "wan21", "--audio",
                 "encodec_24khz", "--json"]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert 0.75e9 < sum(report["parameters"].values()) < 0.9e9
    assert report["generation_floor_s_per_chunk"]["backbone"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "huge"], "Could not find 'model/huge'"),
        (["--model", "huge.yaml"], "huge.yaml does not exist"),
        (["--video", "huge"], "Could not find 'video_vae/huge'"),
        (["--video", "causal"], "does not tell the shape"),
        (["--size", "100"], "HEIGHTxWIDTH"),
        (["--size", "480x760", "--model", "base", "--video", "wan21"], "do not divide"),
        (["--sets", "0"], "sampling.sets must be a whole number in [1, 1000]"),
        (["--gpu", "B999"], "not known"),
    ],
)
def test_mistakes_are_told(arguments, message):
    done = CliRunner().invoke(app, ["model", "describe", *arguments], env={"COLUMNS": "300"})
    assert done.exit_code in (1, 2)
    assert message in " ".join(done.output.split())


def test_a_yaml_of_one_s_own_is_described_with_any_tokenizer(tmp_path):
    """Its patch is the tokenizer's; sets and steps are its own."""
    (tmp_path / "own.yaml").write_text((CONFIGS / "model" / "tiny.yaml").read_text().replace("sets: 6", "sets: 3"))
    arguments = ["model", "describe", "--model", str(tmp_path / "own.yaml"), "--video", "wan21"]
    done = CliRunner().invoke(app, [*arguments, "--size", "96x96"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    assert "3 sets x 8 flow steps" in done.output
