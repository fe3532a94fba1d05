"""`vidchat model describe`: how large a model is, what it costs, and how fast a GPU could be at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidchat.errors import plainly
from vidchat.shipped import CONFIGS

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vidchat.model.responder import Responder
    from vidchat.profiling.cost import Workload
    from vidchat.tokenizers.layout import AudioLayout, VideoLayout

app = typer.Typer(help="The model itself: its size and what it costs.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Commands about the model."""


@app.command()
def describe(
    model: Annotated[str, typer.Option(help="A file of configs/model, by name or path.")] = "tiny",
    size: Annotated[str, typer.Option(help="Frames, HEIGHTxWIDTH.")] = "96x96",
    video: Annotated[str, typer.Option(help="Video tokenizer, a name of configs/video_vae.")] = "demo",
    audio: Annotated[str, typer.Option(help="Audio codec, a name of configs/audio_codec, or none.")] = "demo",
    chunks: Annotated[int, typer.Option(help="Chunks of a training clip, 6.25 a second at 160 ms.")] = 25,
    turns: Annotated[int, typer.Option(help="Chunks of the initiator's clip and of earlier turns.")] = 25,
    text: Annotated[int, typer.Option(help="Text tokens.")] = 0,
    batch: Annotated[int, typer.Option(help="Clips in a training step.")] = 1,
    window: Annotated[int, typer.Option(help="Of generation, in chunks.")] = 64,
    sets: Annotated[int | None, typer.Option(help="Sets of a chunk's visual tokens; by default the model's.")] = None,
    flow_steps: Annotated[
        int | None, typer.Option(help="Evaluations of the flow head for each set; by default the model's.")
    ] = None,
    guided: Annotated[bool, typer.Option(help="Generate with classifier-free guidance.")] = False,
    gpu: Annotated[str, typer.Option(help="H100, H200, A100 or L40S.")] = "H100",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part; operations, bytes and memory of training and generation; the floor in time on a GPU.

    vidchat model describe --model base --size 480x768 --video wan21 --audio encodec_24khz
    """
    from vidchat.profiling.cost import DEVICES, Workload

    if gpu not in DEVICES:
        raise typer.BadParameter(f"--gpu {gpu} is not known; there are {', '.join(DEVICES)}")
    with plainly():
        built, grid, clock = build(model, size, video, audio, turns > 0, text > 0)
        sampling = built.sampling.changed({"sets": sets, "flow_steps": flow_steps})
    work = Workload(grid, chunks, turns, text, batch, window, sampling.sets, sampling.flow_steps, guided)
    report = measure(built, work, gpu)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, f"{model}, {size}, {video}, {audio}", work, gpu, clock)


def build(
    model: str, size: str, video: str, audio: str, listens: bool = True, reads: bool = False
) -> tuple[Responder, tuple[int, int], float]:
    """A model without memory for its weights, as `train.py` builds it for frames and tokenizers.

    Args:
        model: A file of configs/model, by name or path.
        size: Of frames, HEIGHTxWIDTH.
        video: A name of configs/video_vae.
        audio: A name of configs/audio_codec, or "none".
        listens: Whether it is given the initiator's clip.
        reads: Whether it is given text.

    Returns:
        The model, rows and columns of a latent, and the seconds of a chunk.

    Raises:
        ValueError: a name or the size is not possible.
    """
    from omegaconf import OmegaConf

    from vidchat.build import clock_of
    from vidchat.training.fit import build_without_memory, check_size, latent_grid

    height, _, width = size.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--size {size} is not HEIGHTxWIDTH, e.g. 480x768")
    sides = [int(height), int(width)]
    config = _config(model, video, audio)
    config.condition.update({"initiator": listens, "text": "answer" if reads else None})
    vae, codec = layouts(config)
    check_size(sides, vae)
    grid = latent_grid(sides, vae, config.model.get("patch", 1), config.model.get("ratio", 1))
    plain: Any = OmegaConf.to_container(config, resolve=False)
    clock = clock_of(config.data.fps, vae, codec)  # type: ignore[arg-type]
    return build_without_memory(plain, vae, codec), grid, float(1 / clock.chunks_per_second)


def layouts(config: DictConfig) -> tuple[VideoLayout, AudioLayout]:
    """Those of a config's tokenizers; raises `ValueError` where only loading these could tell."""
    from omegaconf import OmegaConf

    from vidchat.tokenizers.layout import audio_layout, video_layout

    plain: Any = OmegaConf.to_container(config, resolve=False)
    vae = video_layout(plain["video_vae"], plain["video_layout"])
    codec = audio_layout(plain["audio_codec"], plain["audio_layout"])
    if vae is None or codec is None:
        raise ValueError("this config does not tell the shape of its tokens; take one that names published weights")
    return vae, codec


def _config(model: str, video: str, audio: str) -> DictConfig:
    """train.py's config of a model and its tokenizers."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from vidchat.foreign import read_yaml
    from vidchat.release_format import to_names

    own = model.endswith(".yaml")
    words = ["stage=pretrain_av", "data=folder", "data.root=.", f"video_vae={video}"]
    words += [] if own else [f"model={model}"]
    words += ["model.depth=null"] if audio == "none" else [f"audio_codec={audio}"]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose("train", words)
    except HydraException as error:
        raise ValueError(f"{str(error).splitlines()[0].rstrip('.')}; see {CONFIGS}") from error
    if own:
        if not Path(model).is_file():
            raise ValueError(f"{model} does not exist; give a name of configs/model or the path of a yaml")
        written = to_names(read_yaml(Path(model)), foreign=False)
        fitted = {key: config.model[key] for key in ("patch", "ratio")}
        config.model = OmegaConf.merge(written, fitted, {"depth": None} if audio == "none" else {})
    return config


def measure(model: Responder, work: Workload, gpu: str) -> dict:
    """All numbers, in operations, bytes and seconds."""
    from vidchat.profiling.cost import DEVICES, Work, generation_work, parameters
    from vidchat.profiling.cost import training_flops as count_training
    from vidchat.profiling.memory import peak_training_bytes, training_bytes

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


def _print(report: dict, title: str, work: Workload, gpu: str, seconds: float) -> None:
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
        f"A generated chunk ({1000 * seconds:.0f} ms): {work.sets} sets x {work.flow_steps} flow steps, "
        f"window {work.window}, {'with' if work.guided else 'without'} guidance, in bf16; tokenizers not counted."
    )
