"""`vidchat model describe`: how large a model is, what it costs, and how fast a GPU could be at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vidchat.model.cost import Workload
    from vidchat.model.responder import Responder

app = typer.Typer(help="The model itself: its size and what it costs.", no_args_is_help=True)

# Channels, spatial stride, temporal stride; codec frames in a chunk at 25 fps, codebooks, entries.
VIDEO = {"demo": (48, 16, 4), "wan21": (16, 8, 4), "wan22": (48, 16, 4)}
AUDIO = {"demo": (8, 4, 256), "encodec_24khz": (12, 8, 1024), "mimi": (2, 8, 2048), "none": None}
DEMO = Path("checkpoints/video_vae/config.json")


@app.callback()
def main() -> None:
    """Commands about the model."""


@app.command()
def describe(
    model: Annotated[str, typer.Option(help="A file of configs/model, by name or path.")] = "tiny",
    size: Annotated[str, typer.Option(help="Pictures, HEIGHTxWIDTH.")] = "96x96",
    video: Annotated[str, typer.Option(help=f"Video tokenizer: {', '.join(VIDEO)}.")] = "demo",
    audio: Annotated[str, typer.Option(help=f"Audio codec: {', '.join(AUDIO)}.")] = "demo",
    chunks: Annotated[int, typer.Option(help="Chunks of a training clip, 6.25 a second.")] = 25,
    turns: Annotated[int, typer.Option(help="Chunks of the initiator's clip and of earlier turns.")] = 25,
    text: Annotated[int, typer.Option(help="Text tokens.")] = 0,
    batch: Annotated[int, typer.Option(help="Clips in a training step.")] = 1,
    window: Annotated[int, typer.Option(help="Of generation, in chunks.")] = 64,
    sets: Annotated[int, typer.Option(help="In which a chunk's visual tokens are generated.")] = 16,
    flow_steps: Annotated[int, typer.Option(help="Of the flow head, for each set.")] = 8,
    guided: Annotated[bool, typer.Option(help="Generate with classifier-free guidance.")] = False,
    gpu: Annotated[str, typer.Option(help="H100, H200, A100 or L40S.")] = "H100",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part; operations, bytes and memory of training and generation; the floor in time on a GPU.

    vidchat model describe --model base --size 480x768 --video wan21 --audio encodec_24khz
    """
    from vidchat.model.cost import DEVICES, Workload

    for name, value, known in (("video", video, VIDEO), ("audio", audio, AUDIO), ("gpu", gpu, DEVICES)):
        if value not in known:
            raise typer.BadParameter(f"--{name} {value} is not known; there are {', '.join(known)}")
    channels, stride, steps = VIDEO[video]
    if video == "demo" and DEMO.is_file():  # the one that is shipped
        channels = json.loads(DEMO.read_text())["config"]["channels"]
    grid = latent_grid(size, stride)
    built = build(model, channels, steps, AUDIO[audio], turns > 0, text > 0)
    side = built.patch * built.ratio
    if grid[0] % side or grid[1] % side:
        raise typer.BadParameter(
            f"--size {size} gives latents of {grid[0]} x {grid[1]}, which {model}'s patches of {side} do not divide"
        )
    work = Workload(grid, chunks, turns, text, batch, window, sets, flow_steps, guided)
    report = measure(built, work, gpu)
    print(json.dumps(report, indent=2)) if as_json else _print(report, f"{model}, {size}, {video}, {audio}", work, gpu)


def build(
    model: str, channels: int, steps: int, codes: tuple[int, int, int] | None, listens: bool, reads: bool
) -> Responder:
    """The model of a config, without memory for its weights."""
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from vidchat.foreign import read_yaml, untrusted_target
    from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
    from vidchat.model.conditions import ConditionSwitches

    path = Path(model) if model.endswith(".yaml") else Path("configs/model") / f"{model}.yaml"
    if not path.is_file():
        raise typer.BadParameter(f"{path} does not exist; run from the repository's root, or give a path to a yaml")
    config = OmegaConf.create(read_yaml(path))
    target = untrusted_target(OmegaConf.to_container(config))
    if target is not None:
        raise typer.BadParameter(f"{path} would build {target}, which is no part of vidchat")
    if codes is None:
        config.depth = None
    with torch.device("meta"):
        responder: Responder = instantiate(
            config,
            tokens=TokenShapes(LatentShape(channels, steps), CodeShape(*codes) if codes else None),
            conditions=ConditionSwitches(turns=listens, text=reads),
        )
    return responder


def measure(model: Responder, work: Workload, gpu: str) -> dict:
    """All numbers, in operations, bytes and seconds."""
    from vidchat.model.cost import DEVICES, Work, generation_work, parameters
    from vidchat.model.cost import training_flops as count_training
    from vidchat.model.memory import peak_training_bytes, training_bytes

    device, trained = DEVICES[gpu], work.chunks * work.batch
    training, moved = count_training(model, work), training_bytes(model, work)
    generation = generation_work(model, work)
    step = Work(sum(training.values()), moved)
    return {
        "parameters": parameters(model),
        "training_flops_per_chunk": {name: flops / trained for name, flops in training.items()},
        "training_bytes_per_chunk": moved / trained,
        "training_peak_bytes": {
            "fp32": peak_training_bytes(model, work, 4),
            "bf16_activations": peak_training_bytes(model, work, 2),
            "bf16_recomputed": peak_training_bytes(model, work, 2, recompute=True),
        },
        "training_floor_s_per_step": step.seconds(device),
        "generation_flops_per_chunk": {name: part.flops for name, part in generation.items()},
        "generation_bytes_per_chunk": {name: part.bytes for name, part in generation.items()},
        "generation_floor_s_per_chunk": {name: part.seconds(device) for name, part in generation.items()},
    }


def latent_grid(size: str, stride: int) -> tuple[int, int]:
    """Rows and columns of the latents of HEIGHTxWIDTH pictures."""
    height, _, width = size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise typer.BadParameter(f"--size {size} is not HEIGHTxWIDTH, e.g. 480x768")
    if int(height) % stride or int(width) % stride:
        raise typer.BadParameter(f"--size {size} must be a multiple of {stride} on both sides for this video tokenizer")
    return int(height) // stride, int(width) // stride


def _print(report: dict, title: str, work: Workload, gpu: str) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {
        "parameters, M": ("parameters", 1e6),
        "training, GFLOP/chunk": ("training_flops_per_chunk", 1e9),
        "generation, GFLOP/chunk": ("generation_flops_per_chunk", 1e9),
        "generation, GB/chunk": ("generation_bytes_per_chunk", 1e9),
        f"floor on {gpu}, ms/chunk": ("generation_floor_s_per_chunk", 1e-3),
    }
    table = Table("part", *columns, title=title)
    parts = {name: None for key, _ in columns.values() for name in report[key]}
    for part in parts:
        cells = [f"{report[key][part] / unit:.4g}" if part in report[key] else "" for key, unit in columns.values()]
        table.add_row(part, *cells)
    table.add_section()
    table.add_row("all", *(f"{sum(report[key].values()) / unit:.4g}" for key, unit in columns.values()))
    console = Console()
    console.print(table)
    peak = report["training_peak_bytes"]
    console.print(
        f"A training step of {work.batch} x {work.chunks} chunks after {work.turns} chunks, {work.text} text tokens:\n"
        f"  peak memory {peak['fp32'] / 1e9:.3g} GB in fp32, about {peak['bf16_activations'] / 1e9:.3g} GB with "
        f"activations in bf16; {peak['bf16_recomputed'] / 1e9:.3g} GB if all blocks recompute\n"
        f"  {report['training_bytes_per_chunk'] / 1e9:.3g} GB moved per chunk, "
        f"floor on {gpu} {report['training_floor_s_per_step']:.3g} s\n"
        f"A generated chunk (160 ms): {work.sets} sets x {work.flow_steps} steps, window {work.window}, "
        f"{'with' if work.guided else 'without'} guidance, in bf16; tokenizers not counted."
    )
