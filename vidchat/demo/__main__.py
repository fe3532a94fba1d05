"""Everything, from nothing to a page: `python -m vidchat.demo` (or `make demo`).

Renders dyads, trains the three stages, answers the test split's initiators with the model just trained and with the
shipped one, measures both beside the truth and beside chance, and writes a page.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vidchat.data.folder import read_dialogues
from vidchat.data.synthetic.script import FEELINGS, TOPICS, cases
from vidchat.demo.answers import Answers, true_case
from vidchat.demo.measure import percent
from vidchat.demo.page import Shown, draw_losses, draw_sheet, write_page
from vidchat.dialogue import Dialogue

ROOT = Path(__file__).parents[2]
STAGES = ("pretrain_visual", "pretrain_av", "sft_dyadic")
SHIPPED = ROOT / "checkpoints" / "demo"
console = Console()


def train_stages(output: Path, data: Path, steps: tuple[int, int, int], overrides: list[str]) -> list[Path]:
    """Run the three stages, each from the release of the one before; returns their folders."""
    folders: list[Path] = []
    for stage, count in zip(STAGES, steps, strict=True):
        folder = output / stage
        command = [sys.executable, "train.py", f"stage={stage}", "data=folder", f"data.root={data}"]
        command += [f"output_dir={folder}", f"stage.steps={count}", "data.max_chunks=14"]
        command += ["stage.module.release_dtype=float16"]
        command += ["trainer.precision=bf16-mixed"] if _multiplies_bf16() else []
        command += [f"init_from={folders[-1] / 'release'}"] if folders else []
        console.rule(f"training {stage}, {count} steps")
        subprocess.run([*command, *overrides], cwd=ROOT, check=True)
        folders.append(folder)
    return folders


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products, which are several times faster than fp32's."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def demo(
    output: Annotated[Path, typer.Option(help="Where everything goes.")] = ROOT / "outputs" / "demo",
    dialogues: Annotated[int, typer.Option(help="Rendered dialogues.")] = 1000,
    answers: Annotated[int, typer.Option(help="Test dialogues that are answered.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the data set.")] = 0,
    steps: Annotated[tuple[int, int, int], typer.Option(help="Training steps of the three stages.")] = (60, 120, 1100),
    override: Annotated[list[str] | None, typer.Option(help="More settings for train.py.")] = None,
) -> None:
    """Render, train, answer, measure, show."""
    start = time.monotonic()
    output = output.resolve()
    data = output / "data"
    console.rule(f"rendering {dialogues} dialogues")
    command = ["--output", str(data), "--dialogues", str(dialogues), "--seed", str(seed)]
    subprocess.run([sys.executable, "-m", "vidchat.data.synthetic", *command], check=True)
    stages = train_stages(output, data, steps, override or [])
    console.rule("answering")
    every = read_dialogues(data)
    train, test = ([d for d in every if d.split == split] for split in ("train", "test"))
    systems = Answers(output, train[:40], test[:answers])
    releases = {"just trained": stages[-1] / "release"}
    if (SHIPPED / "config.yaml").is_file():
        releases["shipped"] = SHIPPED
    scores = systems.score(releases)
    shown = [
        Shown(_title(dialogue), true_case(dialogue).answer, clips, {name: s.heard[i] for name, s in scores.items()})
        for i, (dialogue, clips) in enumerate(zip(systems.test, systems.clips, strict=True))
    ]
    chance = {
        "identity": 1 / len(systems.references),
        "answer": 1 / len(cases()),
        "topic": 1 / len(TOPICS),
        "feeling": 1 / len(FEELINGS),
    }
    draw_losses(stages, output / "losses.png")
    draw_sheet(shown[:4], output / "sheet.png", ["initiator", "truth", next(reversed(releases))])
    page = write_page(output, shown, scores, chance, systems.notes())
    for name, s in scores.items():
        console.print(
            f"{name:14} face {s.identity:.0%}, mouth r {s.mouth:.2f} ({s.mouth_shuffled:.2f} with another sound), "
            f"answer {percent(s.answer, len(s.heard))}, topic {s.topic:.0%}, feeling {s.feeling:.0%}, {s.psnr:.1f} dB"
        )
    console.print("chance         " + ", ".join(f"{name} {value:.0%}" for name, value in chance.items()))
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes. Open [bold]{page}[/bold]")


def _title(dialogue: Dialogue) -> str:
    case, question = true_case(dialogue), dialogue.question
    asked = question.text if question else ""
    return f"“{asked}”, asked in a {case.expression} way. Right: “{case.answer}”"


if __name__ == "__main__":
    typer.run(demo)
