"""Counted work and the memory formula, compared with measurements of a small model."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.batches import answers
from tests.model.conftest import conditioning, shape
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.cli import app
from vidchat.model import masked, set_causal
from vidchat.model.depth import CodeSampling
from vidchat.model.flow import FlowShape
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.mask import BlockCausal
from vidchat.model.spatial import set_sizes
from vidchat.model.transformer import Shape, Transformer
from vidchat.profiling import cost
from vidchat.profiling.count import Work, count
from vidchat.profiling.describe import Described, build
from vidchat.profiling.memory import peak_training_bytes
from vidchat.shipped import CONFIGS

WORK = cost.Workload(grid=(8, 8), said=4, heard=3, text=5, batch=2, window=6, sets=3, flow_steps=2)
CHUNK, HEARD, FINE = 16 + 4, 4 + 4, 64  # tokens of a said and a heard chunk in the backbone; in the spatial transformer
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def a_batch(chunks: int = 4) -> ChunkBatch:
    torch.manual_seed(0)
    text = ConditionValues(torch.randint(11, (2, 5)), torch.ones(2, 5, dtype=torch.bool))
    said = torch.randn(2, chunks + 1, 3, 8, 8), torch.randint(16, (2, chunks, 4, 2))
    heard = torch.randn(2, 3, 3, 8, 8), torch.randint(16, (2, 3, 4, 2))
    return answers(*said, None, *heard, {"text": text})


@pytest.fixture
def mean_draws(monkeypatch):
    monkeypatch.setattr(masked, "draw_masked_count", lambda tokens: round(tokens * cost.MASKED))
    monkeypatch.setattr(set_causal, "draw_set_count", lambda tokens: cost.SETS)


@pytest.fixture(params=[False, True], ids=["masked", "set_causal"])
def model(make_responder, mean_draws, request):
    conditions = conditioning(turns=True, drop=0.0, text=True)
    flow = FlowShape(width=24, blocks=2, draws=6, noises=2)
    # Two layers to each half, of which the second computes the needed outputs only.
    return make_responder(conditions=conditions, flow=flow, spatial=shape(4), set_causal=request.param)


def products(function) -> float:
    """Returns the operations of matrix products; on a CPU, the counter does not count attention."""
    with FlopCounterMode(display=False) as counter:
        function()
    by_kind = counter.get_flop_counts()["Global"]
    return sum(flops for kind, flops in by_kind.items() if kind in PRODUCTS)


def flops(parts: dict[str, Work]) -> float:
    return sum(part.flops for part in parts.values())


def attention_flops(shape: Shape, pairs: int, last: int) -> float:
    return 4 * shape.heads * shape.head_dim * ((shape.layers - 1) * pairs + last)


def pairs_of(blocks: list[int], queries: list[int] | None = None, last: int | None = None) -> int:
    """Returns the number of computed pairs of a query and a key, span by span, for the last queries."""
    mask = BlockCausal(
        torch.tensor([blocks]), torch.ones(1, len(blocks), dtype=torch.bool), queries and torch.tensor([queries])
    )
    spans = mask.last_spans(mask.query_blocks.shape[1] if last is None else last)
    return sum((span.end - span.start) * span.keys for span in spans)


def set_causal_flops(spatial, sets: list[int]) -> float:
    """Returns the operations of attention of one chunk: of the tokens that are read, then of all that are predicted."""
    order = [i for i, size in enumerate(sets) for _ in range(size)]
    known = [0] * CHUNK + [i + 1 for i in order[: FINE - sets[-1]]]
    read, asked = pairs_of(known), pairs_of(known, order)
    encoder, decoder = spatial.encoder.shape, spatial.decoder.shape
    return attention_flops(encoder, read, read) + attention_flops(decoder, asked, asked)


def test_a_product_reads_its_second_factor_and_counts_for_the_module_that_computes_it():
    model = torch.nn.ModuleDict({"with_bias": torch.nn.Linear(6, 7), "plain": torch.nn.Linear(7, 5, bias=False)})
    model.to("meta")
    x = torch.empty(2, 3, 6, device="meta")

    def run() -> None:
        y = model["plain"](model["with_bias"](x))
        F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None])  # outside all modules, counted for the last

    parts = count(model, run)
    attention = Work(2 * 2 * (2 * 3 * 3 * 5), 2 * (2 * 3 * 5))
    assert parts == {
        "with_bias": Work(2 * 6 * 6 * 7, 6 * 7),
        "plain": Work(2 * 6 * 7 * 5, 7 * 5) + attention,
    }


def test_attention_is_counted_over_the_pairs_that_the_mask_leaves():
    """The count is exact for chunks of 64 tokens or more, as at every real size."""
    stack = Transformer(shape()).to("meta")
    stack.layers[0].self_attn.backend = stack.layers[1].self_attn.backend = "spans"
    blocks = torch.arange(4).repeat_interleave(70)[None]
    mask = BlockCausal(blocks, torch.ones(1, 280, dtype=torch.bool, device="meta"))
    x = torch.empty(1, 280, 16, device="meta")
    counted = flops(count(stack, lambda: stack(x, x[..., :3], mask)))
    weights = sum(p.numel() for p in stack.parameters() if p.dim() == 2)
    pairs = int(BlockCausal(blocks, torch.ones(1, 280, dtype=torch.bool)).dense().sum())
    assert counted == 2 * 280 * weights + attention_flops(stack.shape, pairs, pairs)


def test_training_operations(model):
    """Forward and backward on a CPU: of the still beside the last chunk heard, one prediction more than is said."""
    model.train()
    batch, size = a_batch(), model.backbone.shape
    measured = products(lambda: model.loss(batch)["loss"].backward())
    steps = [(0, CHUNK), (1, HEARD), (2, HEARD), (3, HEARD + CHUNK), *((step, CHUNK) for step in range(4, 8))]
    blocks = [*range(5), *(5 + step for step, tokens in steps for _ in range(tokens))]
    attention = attention_flops(size, pairs_of(blocks), pairs_of(blocks, last=len(blocks) - 5))
    attention += 5 * attention_flops(model.depth.transformer.shape, 8 * 8, 8 * 8)
    if isinstance(model.spatial, set_causal.SetCausalTransformer):
        attention += 5 * set_causal_flops(model.spatial, set_sizes(FINE, cost.SETS))
    else:
        hidden = round(FINE * cost.MASKED)
        known, everything = CHUNK + FINE - hidden, CHUNK + FINE
        attention += 5 * attention_flops(model.spatial.encoder.shape, known**2, known**2)
        attention += 5 * attention_flops(model.spatial.decoder.shape, everything**2, hidden * everything)
    counted = flops(cost.training_work(model, WORK))
    assert counted - 3 * 2 * attention == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize(("branch", "columns"), [("single", (5, 0)), ("dialogue", (6, 3)), ("listening", (5, 3))])
def test_the_tokens_of_each_branch(model, branch, columns):
    """The still of a turn that does not start at step 1 is read beside the reference."""
    work = replace(WORK, branch=branch)
    assert tuple(map(len, work.columns())) == columns
    assert cost.Sizes.of(model, work).sample(work) == 5 + columns[0] * CHUNK + columns[1] * HEARD


def seen_in_generation() -> int:
    return 5 + CHUNK + (6 + 1) * (HEARD + CHUNK)


@pytest.mark.parametrize("kind", ["said", "heard_and_said"])
def test_generation_operations(model, kind):
    model.eval()
    batch, size = a_batch().first(1), model.backbone.shape
    sampling = ChunkSampling(sets=3, flow_steps=2, codes=CodeSampling(temperature=0))
    said = Chunk(batch.latents[:, 1], batch.codes[:, 2])
    heard = said if kind == "heard_and_said" else None
    with torch.no_grad():
        state = model.start(batch, WORK.window)

        def chunk() -> None:
            model.generate_chunk(model.read_step(state, said, heard), sampling)

        measured = products(chunk)
    tokens = CHUNK + (HEARD if heard else 0)
    attention = attention_flops(size, tokens * seen_in_generation(), tokens * seen_in_generation())
    attention += attention_flops(model.depth.transformer.shape, 36, 36)
    sets = set_sizes(FINE, 3)
    if isinstance(model.spatial, set_causal.SetCausalTransformer):
        read = [CHUNK, *sets[:-1]]
        pairs = sum(size * total for size, total in zip(read, itertools.accumulate(read), strict=True))
        asked = sum(size * total for size, total in zip(sets, itertools.accumulate(read), strict=True))
        attention += attention_flops(model.spatial.encoder.shape, pairs, pairs)
        attention += attention_flops(model.spatial.decoder.shape, asked, asked)
    else:
        known, everything = CHUNK, CHUNK + FINE
        for size in sets:
            attention += attention_flops(model.spatial.encoder.shape, known**2, known**2)
            attention += attention_flops(model.spatial.decoder.shape, everything**2, size * everything)
            known += size
    assert flops(cost.generation_work(model, WORK)[kind]) - attention == measured


def test_what_generation_reads(model):
    """Generation reads the backbone's weights and cache once, the depth transformer's weights once for every code."""
    parts = cost.generation_work(model, WORK)["said"]
    cached = 2 * 2 * seen_in_generation() * model.backbone.shape.kv_heads * model.backbone.shape.head_dim
    matrices = {name: sum(p.numel() for p in part.parameters() if p.dim() > 1) for name, part in model.named_children()}
    assert parts["backbone"].values == matrices["backbone"] + cached
    depth = model.depth.transformer
    stack = sum(p.numel() for p in depth.parameters() if p.dim() > 1)
    own = 2 * depth.shape.layers * depth.shape.kv_heads * depth.shape.head_dim * sum(range(1, 9))
    codes = 8 * model.depth.heads[0].numel() + model.depth.condition.weight.numel()
    assert parts["depth"].values == 8 * stack + own + codes
    guided = cost.generation_work(model, replace(WORK, guided=True))["said"]
    assert guided["backbone"].values == matrices["backbone"] + 2 * cached, "two halves share the weights"
    assert guided["backbone"].flops == 2 * parts["backbone"].flops


def test_a_model_that_hears_nothing_keeps_no_place_for_it(make_responder):
    deaf = make_responder(conditions=conditioning(), spatial=shape(4))
    parts = cost.generation_work(deaf, replace(WORK, text=0))
    assert parts.keys() == {"said"}
    size, seen = deaf.backbone.shape, CHUNK * (1 + 6 + 1)
    weights = sum(p.numel() for p in deaf.backbone.parameters() if p.dim() > 1)
    assert parts["said"]["backbone"].values == weights + 2 * size.layers * seen * size.kv_heads * size.head_dim


def test_counting_changes_neither_the_model_nor_the_random_state(model):
    state = torch.get_rng_state()
    cost.training_work(model, WORK)
    cost.generation_work(model, WORK)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(p.is_meta for p in model.parameters())
    assert {layer.self_attn.backend for layer in model.backbone.layers} == {"auto"}


@pytest.mark.parametrize("noises", [1, 4])
@pytest.mark.parametrize("set_causal", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.usefixtures("mean_draws")
def test_peak_memory(make_responder, recompute, set_causal, noises):
    """The formula is within a sixth of the measured peak of a training step."""
    wide = Shape(64, 4, 4, 2, 16, 192, recompute=recompute)
    model = make_responder(
        backbone=wide, spatial=wide, depth=wide, flow=FlowShape(width=64, blocks=3, noises=noises),
        conditions=conditioning(turns=True, drop=0.0, text=True), set_causal=set_causal,
    ).train()  # fmt: skip
    batch = a_batch(20)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(2):
            model.loss(batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]  # below 0 when freed
    measured = 4 * sum(p.numel() for p in model.parameters()) + max(itertools.accumulate(sizes))
    work = cost.Workload(grid=(8, 8), said=20, heard=3, text=5, batch=2)
    expected = peak_training_bytes(model, work, average=False)
    assert expected == pytest.approx(measured, rel=1 / 6), expected / measured


def test_a_set_causal_chunk_costs_the_same_in_however_many_sets(make_responder):
    """Except for the last set, which is never read; the masked transformer computes all tokens again for each set."""
    masked, causal = (make_responder(spatial=shape(4), set_causal=kind) for kind in (False, True))
    few, many = (
        [cost.generation_work(model, replace(WORK, sets=sets))["said"]["spatial"].flops for model in (masked, causal)]
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


VIDEO = sorted(path.stem for path in (CONFIGS / "video_vae").glob("*.yaml"))


@pytest.mark.parametrize("video", [name for name in VIDEO if name != "causal"])
def test_every_video_tokenizer_is_described(video):
    model, work, seconds = build(Described("base", (480, 768), video, "mimi"))
    assert cost.Sizes.of(model, work).coarse == 360, "a backbone's token is 32 x 32 pixels with each"
    assert seconds == 0.32 if video in ("cosmos", "ltx") else 0.16


def test_the_base_model_is_as_large_as_the_paper_s():
    words = "model=base size=480x768 video_vae=wan21 audio_codec=mimi sets=2 flow_steps=2 said=4 heard=4 window=4"
    done = CliRunner().invoke(app, ["model", "describe", *words.split(), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert 0.75e9 < sum(report["parameters"].values()) < 0.9e9
    assert report["generation"]["heard_and_said"]["floor_s"]["backbone"] > 0
    assert report["training"].keys() == {"single", "dialogue", "listening"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("model=huge", "Could not find 'model/huge'"),
        ("model=huge.yaml", "huge.yaml does not exist"),
        ("video_vae=huge", "Could not find 'video_vae/huge'"),
        ("video_vae=causal", "does not tell the shape"),
        ("size=100", "HEIGHTxWIDTH"),
        ("size=480x760 model=base video_vae=wan21", "do not divide"),
        ("sets=0", "sampling.sets must be a whole number in [1, 1000]"),
        ("video_vae=null", "video_vae must be the name of one of its configs"),
        ("said=0", "said must be at least 1"),
        ("gpu=b999", "h100, h200, a100, l40s"),
        ("modle=base", "did you mean 'model'?"),
        ("model.set_casual=true", "did you mean 'model.set_causal'?"),
    ],
)
def test_a_mistake_is_explained_in_one_sentence(words, message):
    done = CliRunner().invoke(app, ["model", "describe", *words.split()], env={"COLUMNS": "300"})
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())


def test_a_model_from_a_yaml_file_is_described_with_any_tokenizer(tmp_path):
    """The patch follows the tokenizer; sets and flow steps come from the file."""
    (tmp_path / "own.yaml").write_text((CONFIGS / "model" / "tiny.yaml").read_text().replace("sets: 6", "sets: 3"))
    model, work, _ = build(Described(str(tmp_path / "own.yaml"), video_vae="wan21"))
    assert (model.patch, work.sets, work.flow_steps) == (2, 3, 8)


def test_model_keys_of_training_are_accepted():
    _, masked_work, _ = build(Described())
    model, work, _ = build(Described(), ["model.set_causal=true", "model.sampling.sets=12"])
    assert isinstance(model.spatial, set_causal.SetCausalTransformer)
    assert (masked_work.sets, work.sets) == (6, 12)
