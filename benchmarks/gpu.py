"""A model's training step and generated chunk on a GPU: time, memory, and the least possible time.

    python benchmarks/gpu.py [--model base] [--size 480x768] [--said 25] [--heard 25] [--recompute] [--output FILE]

Weights and tokens are random; tokens have the shapes of wan21 and encodec_24khz (or --video demo --audio demo). The
training step is forward, backward and fused AdamW in bf16-mixed, eager and with compiled blocks, of a dialogue: heard
chunks, then said ones. The chunk, which reads a heard and a said chunk after a full window, is eager and with the loops
of the depth transformer and the flow head as CUDA graphs, in fp32 with TF32 products and in bf16. Times are medians of
--repeats runs after two, each until the device has finished. Peak memory is the allocator's; it includes the fp32
weights in the rows of bf16. The floors are those of `vidchat model describe` for --gpu, in bf16. With --device cpu,
training runs in fp32, as a check of this file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vidchat.batch import ChunkBatch
from vidchat.model.attention import HAS_FLASH
from vidchat.model.compiled import compile_blocks
from vidchat.model.depth import CodeSampling
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.graphs import CapturedLoops
from vidchat.model.precision import to_bf16
from vidchat.model.responder import Responder
from vidchat.model.transformer import Transformer
from vidchat.profiling.cost import DEVICES, Workload, random_batch
from vidchat.profiling.describe import Described, build, measure
from vidchat.runtime.sizes import parse_size
from vidchat.training.ema import EMA
from vidchat.training.schedule import OptimizerSettings, clip_and_guard, make_optimizer


def fill(model: Responder, device: str) -> Responder:
    """Allocates a model that was built without memory, with small random weights; recomputes the code offsets."""
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else parameter.fill_(1)
        codes = model.code_shape
        if codes is not None:
            model.embed.codes.offsets.copy_(torch.arange(codes.codebooks) * codes.vocabulary)
    return model


def timed(function: Callable[[], Any], repeats: int, device: str) -> dict[str, float]:
    """Returns the seconds of the first run, and the median seconds and the peak bytes of later runs."""

    def once() -> float:
        start = time.perf_counter()
        function()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first, _ = once(), once()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    median = statistics.median(once() for _ in range(repeats))
    peak = 0 if device == "cpu" else torch.cuda.max_memory_allocated()
    return {"first_s": first, "median_s": median, "peak_bytes": peak}


def training(model: Responder, batch: ChunkBatch, device: str) -> Callable[[], None]:
    """Returns a function that runs a training step of `vidchat train`."""
    optimizer, schedule = make_optimizer(model.train(), OptimizerSettings())
    ema = EMA(model, 0.999)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
            loss = model.loss(batch)["loss"]
        loss.backward()
        clip_and_guard(optimizer, model, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.update()

    return step


def generation(
    model: Responder, batch: ChunkBatch, work: Workload, loops: CapturedLoops | None, device: str
) -> Callable[[], None]:
    """Returns a function that reads a heard and a said chunk after a full window, and generates the next."""
    generator = torch.Generator(device).manual_seed(0)
    sampling = ChunkSampling(sets=work.sets, flow_steps=work.flow_steps, codes=CodeSampling())
    batch = batch.first(1)
    heard = None if batch.heard_latents is None else Chunk(batch.heard_latents[:, 0], _first(batch.heard_codes))
    said = Chunk(batch.latents[:, -1], _first(batch.codes))
    with torch.no_grad():
        state = model.eval().start(batch, work.window)
        for _ in range(work.window):
            state = model.read_step(state, said, heard)

    def chunk() -> None:
        nonlocal state, said
        with torch.no_grad():
            state = model.read_step(state, said, heard, 0.0, generator)
            said = model.generate_chunk(state, sampling, generator, loops)

    return chunk


def _first(codes: torch.Tensor | None) -> torch.Tensor | None:
    return None if codes is None else codes[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="base", help="a name in configs/model")
    parser.add_argument("--size", type=parse_size, default="480x768", help="HEIGHTxWIDTH")
    parser.add_argument("--video", default="wan21", help="a name in configs/video_vae")
    parser.add_argument("--audio", default="encodec_24khz", help="a name in configs/audio_codec, or none")
    parser.add_argument("--said", type=int, default=25)
    parser.add_argument("--heard", type=int, default=25)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sets", type=int, default=16)
    parser.add_argument("--recompute", action="store_true", help="recompute all blocks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gpu", choices=DEVICES, default="h100", help="GPU of the printed floors")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    settings = Described(
        options.model, options.size, options.video, options.audio, options.said, options.heard, batch=options.batch,
        sets=options.sets, flow_steps=8,
    )  # fmt: skip
    model, work, _ = build(settings)
    for stack in [module for module in model.modules() if isinstance(module, Transformer)]:
        stack.shape = replace(stack.shape, recompute=options.recompute)
    floors = measure(model, work, options.gpu)
    name = "cpu" if options.device == "cpu" else torch.cuda.get_device_name()
    result: dict[str, Any] = {"torch": torch.__version__, "device": name, "flash": HAS_FLASH, "floors": floors}
    result["options"] = {key: value for key, value in vars(options).items() if key != "output"}
    fill(model, options.device)
    batch = random_batch(model, work, options.device)

    def row(name: str, function: Callable[[], None], floor: float) -> None:
        numbers = result[name] = timed(function, options.repeats, options.device)
        times = f"{1e3 * numbers['median_s']:9.1f} ms, floor {1e3 * floor:.1f} ms; first {numbers['first_s']:.1f} s"
        print(f"{name:28}{times}; peak {numbers['peak_bytes'] / 1e9:.1f} GB", flush=True)
        if options.output:  # after every row, should a later one fail
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")

    chunk = sum(floors["generation"]["heard_and_said" if options.heard else "said"]["floor_s"].values())
    floor = floors["training"]["dialogue" if options.heard else "single"]["floor_s_per_step"]
    half = copy.deepcopy(model)
    to_bf16(half)
    for name, network in (("chunk", model), ("chunk, bf16", half)):
        row(name, generation(network, batch, work, None, options.device), chunk)
        row(f"{name}, captured", generation(network, batch, work, CapturedLoops(), options.device), chunk)
    del network, half
    row("training step", training(model, batch, options.device), floor)
    compile_blocks(model)
    row("training step, compiled", training(model, batch, options.device), floor)


if __name__ == "__main__":
    main()
