"""`vidchat model describe`: the size and the cost of a model, and the highest speed that a GPU allows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidchat.cli.settings import Settings, command_with, read_settings
from vidchat.runtime.errors import user_errors
from vidchat.runtime.sizes import format_size

if TYPE_CHECKING:
    from vidchat.model.responder import Responder
    from vidchat.profiling.cost import Workload
    from vidchat.profiling.describe import Described

app = typer.Typer(help="Prints the size and the cost of a model.", no_args_is_help=True)


@app.callback()
def main() -> None:
    """Commands about the model."""


def _settings() -> list[type]:
    from vidchat.profiling.describe import Described

    return [Described]


def _more() -> str:
    return "Keys of `vidchat train` under model, video_vae and audio_codec also work, such as model.set_causal=true.\n"


@app.command(cls=command_with(_settings, _more))
def describe(
    words: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prints parameters, operations, bytes and memory of training and generation, and the least times on a GPU.

    vidchat model describe model=base size=480x768 video_vae=wan21 audio_codec=mimi gpu=h100
    """
    with user_errors():
        from vidchat.profiling.describe import OVERRIDES, Described, measure

        overrides = [word for word in words or () if word.startswith(OVERRIDES)]
        settings = read_settings(Described, [word for word in words or () if word not in overrides])
        model, work, seconds = _build(settings, overrides)
        report = measure(model, work, settings.gpu)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, settings, work, seconds)


def _build(settings: Described, overrides: list[str]) -> tuple[Responder, Workload, float]:
    """Calls `vidchat.profiling.describe.build`; errors of Hydra become a `ValueError` of one sentence."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from vidchat.cli.overrides import TRAIN_PATHS, explain_error, literally
    from vidchat.profiling.describe import build

    try:
        return build(settings, literally(overrides, TRAIN_PATHS))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain_error(error, "train")) from None


def _print(report: dict[str, Any], settings: Described, work: Workload, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    training, generation = report["training"], report["generation"]
    columns: dict[str, tuple[dict[str, float], float]] = {"weights\nM": (report["parameters"], 1e6)}
    columns |= {f"{branch}\nTFLOP": (costs["flops_per_sample"], 1e12) for branch, costs in training.items()}
    columns |= {f"{kind.replace('_', ' ')}\nGFLOP": (costs["flops"], 1e9) for kind, costs in generation.items()}
    largest, gpu = generation["heard_and_said" if "heard_and_said" in generation else "said"], settings.gpu.upper()
    columns |= {"generation\nGB": (largest["bytes"], 1e9), f"{gpu} floor\nms": (largest["floor_s"], 1e-3)}
    title = (
        f"{settings.model}, {format_size(settings.size)}, {settings.video_vae}, {settings.audio_codec}: "
        "a training sample by branch, and a generated chunk"
    )
    table = Table("part", *columns, title=title)
    for part in {name: None for costs, _ in columns.values() for name in costs}:
        table.add_row(part, *(f"{costs[part] / unit:.4g}" if part in costs else "" for costs, unit in columns.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(costs.values()) / unit:.4g}" for costs, unit in columns.values()))
    console = Console()
    console.print(table)
    console.print(f"A training step of {work.batch} x {work.said} said chunks, {work.text} text tokens, by branch:")
    for branch, costs in training.items():
        peak = costs["peak_bytes"]
        console.print(
            f"  {branch}: {costs['tokens_per_sample']} tokens a sample; peak memory {peak['fp32'] / 1e9:.3g} GB in "
            f"fp32, about {peak['bf16_activations'] / 1e9:.3g} GB with activations in bf16, "
            f"{peak['bf16_recomputed'] / 1e9:.3g} GB if all blocks recompute; "
            f"floor on {gpu} {costs['floor_s_per_step']:.3g} s"
        )
    console.print(
        f"A generated chunk ({1000 * seconds:.0f} ms): {work.sets} sets x {work.flow_steps} flow steps, "
        f"window {work.window}, {'with' if work.guided else 'without'} guidance, in bf16; tokenizers not counted. "
        "GB and floor are those of a step in which something is heard, if the model hears."
    )
