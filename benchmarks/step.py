"""Time of a training step on a CPU, by branch and by attention backend.

    OMP_NUM_THREADS=1 python benchmarks/step.py [--repeats 7] [--output FILE]

A random model=tiny on demo-sized tokens: 17 tokens to a said chunk and 12 to a heard one, questions and answers of 14
chunks, batch 8. Prints medians of processor seconds of one thread, of alternating runs: of a dialogue, with two
attention backends and with what is heard read as finely as what is said (heard_ratio=1); and of the branches. The floor
is the model's number of operations (vidchat model describe) at the speed of a square matrix product.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from nova import matrix_product, seconds
from omegaconf import OmegaConf

from vidchat.batch import ChunkBatch
from vidchat.conditions.base import Conditioning
from vidchat.model.attention import attend
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.mask import BlockCausal
from vidchat.model.precision import to_bf16
from vidchat.model.responder import Responder
from vidchat.profiling.cost import BRANCHES, Workload, random_batch, training_work

ROOT = Path(__file__).parents[1]
CHANNELS, CHUNKS, BATCH = 48, 14, 8
WORK = Workload((6, 6), CHUNKS, CHUNKS, batch=BATCH)


def tiny(attention: str = "auto", heard_ratio: int = 2) -> Responder:
    config = OmegaConf.load(ROOT / "configs" / "model" / "tiny.yaml")
    config.backbone.attention, config.heard_ratio = attention, heard_ratio
    torch.manual_seed(0)
    tokens = TokenShapes(LatentShape(CHANNELS, 4), CodeShape(8, 4, 256))
    return instantiate(config, tokens=tokens, conditions=Conditioning(hears=True)).train()


def a_batch(model: Responder) -> ChunkBatch:
    """Returns dialogues in which half of one question is missing, as by padding."""
    batch = random_batch(model, WORK)
    assert batch.heard_video is not None
    batch.heard_video[0, CHUNKS // 2 :] = False  # and `heard_audio`, which is the same tensor
    return batch


def attention(backend: str, shape: tuple[int, int, int, int], chunk: int) -> Callable[[], None]:
    """Returns a function that runs attention of (B, heads, N, head_dim) in chunks, forward and backward."""
    size, heads, tokens, width = shape
    inputs = [torch.randn(size, tokens, heads, width).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = BlockCausal(torch.arange(tokens)[None] // chunk, torch.ones(size, tokens, dtype=torch.bool))
    mask.visible[0, : tokens // 4] = False
    return lambda: attend(*inputs, mask, backend=backend).sum().backward()  # type: ignore[arg-type]


def generation(name: str, model: Responder, batch: ChunkBatch) -> dict[str, Callable[[], Any]]:
    """Returns functions that generate one chunk after the reference, and its codes alone."""
    state, sampling = model.start(batch), ChunkSampling()
    audio = state.hidden[:, -model.codec_frames :]
    return {
        name: lambda: model.generate_chunk(state, sampling),
        f"{name}, codes": lambda: model.depth.sample(audio, sampling.codes),
    }


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median processor seconds of each function; the functions alternate."""
    for function in functions.values():
        function()
    rounds = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    return {name: statistics.median(times[name] for times in rounds) for name in functions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    floor = matrix_product()
    result: dict[str, Any] = {"torch": torch.__version__, "matrix_product_gflops": floor}
    print(f"a matrix product: {floor:.0f} GFLOP/s")
    for shape, chunk in (((8, 3, 476, 64), 17), ((1, 8, 1568, 64), 98)):
        times = alternate({name: attention(name, shape, chunk) for name in ("spans", "dense")}, options.repeats)
        result[f"attention {shape}"] = times
        line = ", ".join(f"{name} {1e3 * time:.1f} ms" for name, time in times.items())
        print(f"attention, {shape} in chunks of {chunk}: {line}")
    models = {"auto": tiny(), "dense": tiny("dense"), "heard_ratio=1": tiny(heard_ratio=1)}
    batch = a_batch(models["auto"])
    trained = {name: (model, batch, WORK) for name, model in models.items()}
    for branch in BRANCHES:
        work = replace(WORK, branch=branch)
        trained[branch] = models["auto"], random_batch(models["auto"], work), work
    steps = {
        name: lambda model=model, batch=batch: (model.loss(batch)["loss"].backward(), model.zero_grad())
        for name, (model, batch, _) in trained.items()
    }
    result["training step"], result["training_gflop"] = alternate(steps, options.repeats), {}
    for name, time in result["training step"].items():
        model, _, work = trained[name]
        flops = result["training_gflop"][name] = sum(part.flops for part in training_work(model, work).values()) / 1e9
        print(f"training step, {name}: {time:.3f} s, {flops / time:.0f} GFLOP/s")
    precisions = {"fp32": models["auto"].eval(), "bf16": models["dense"].eval()}
    to_bf16(precisions["bf16"])
    with torch.no_grad():
        functions: dict[str, Callable[[], Any]] = {}
        for name, model in precisions.items():
            functions |= generation(name, model, batch.first(1))
        times = alternate(functions, options.repeats)
    result["generated chunk, 6 sets of 8 steps"] = times
    for name in precisions:
        line = f"{1e3 * times[name]:.1f} ms, of which its 32 codes {1e3 * times[f'{name}, codes']:.1f}"
        print(f"a generated chunk (160 ms), 6 sets of 8 steps, {name}: {line}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
