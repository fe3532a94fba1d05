"""The command `vidchat demo` (or `make demo`): from an empty folder to a page of answers and scores.

Shows the shipped model's answers to people it has never seen, measures the machine, and prints a plan that fits the
time limit. Then renders dyads, trains three stages, answers with both models, and scores them beside truth and chance.
"""

from __future__ import annotations

from vidchat.runtime.threads import VARIABLES  # (before torch)

# isort: split
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vidchat.data.folder import read_dialogues
from vidchat.dialogue import Dialogue
from vidchat.playground.demo.answers import Answers, true_case
from vidchat.playground.demo.budget import Plan, Speed, announce, make_plan, read_plan, steps_that_fit, write_plan
from vidchat.playground.demo.measure import Scores, percent
from vidchat.playground.demo.page import Shown, draw_losses, draw_sheet, write_page
from vidchat.playground.demo.speed import measure_comparison, measure_dialogue, measure_step, measure_training
from vidchat.playground.people.script import FEELINGS, TOPICS, cases
from vidchat.release import load_release
from vidchat.shipped import find

STAGES = ("pretrain_visual", "pretrain_av", "sft_dyadic")
SHIPPED = find("checkpoints/demo")
TEST_SEED = 1000
"""Added to the seed of the test people, whom neither model has seen."""
FIRST_ANSWERS = 6
console = Console()


@dataclass(frozen=True)
class People:
    """Rendered test dialogues.

    Attributes:
        answered: Dialogues to answer, each with a different responder.
        others: Dialogues of other responders, to which the mouth reader is fitted.
    """

    answered: list[Dialogue]
    others: list[Dialogue]


def render(folder: Path, dialogues: int, seed: int, *options: str) -> None:
    """Renders a data set on all cores, in a process of its own."""
    command = [sys.executable, "-m", "vidchat", "people", "--output", str(folder)]
    subprocess.run([*command, "--dialogues", str(dialogues), "--seed", str(seed), *options], check=True)


def render_people(folder: Path, answers: int, seed: int) -> People:
    """Renders the test dialogues; a third of them are answered, so that enough other responders are left."""
    console.rule("rendering people to answer")
    render(folder, max(24, round(3.4 * answers)), seed + TEST_SEED, "--pairings", "1")
    rendered = read_dialogues(folder)
    answered = [dialogue for dialogue in rendered if dialogue.split == "train"][:answers]
    speakers = {dialogue.answer.speaker for dialogue in answered}
    return People(answered, [dialogue for dialogue in rendered if dialogue.answer.speaker not in speakers])


def show_first_answers(output: Path, people: People) -> float:
    """Writes a page with some answers of the shipped model, to watch during training; returns seconds per answer."""
    console.rule("the shipped model answers")
    systems = Answers(output, [], people.answered[:FIRST_ANSWERS])
    seconds = systems.time_answers("shipped", load_release(SHIPPED))
    note = "Answers of the shipped model. The answers of the model in training and all scores follow at the end."
    page = write_page(output, _columns(systems, {}), {}, {}, [note])
    console.print(f"Its first answers are ready to watch: [bold]{page}[/bold]")
    return seconds


def make_or_read_plan(output: Path, people: People, minutes: float, seed: int, start: float) -> Plan:
    """Returns the plan of an earlier start of this command, or measures the machine, makes a new plan and prints it."""
    path = output / "plan.json"
    if (plan := read_plan(path)) is not None:
        console.print(f"continuing with the plan in {path}; choose another --output to start afresh")
        return plan
    answer = show_first_answers(output, people)
    console.rule("measuring this machine")
    release = load_release(SHIPPED)
    step, threads, precision = measure_training(release)
    comparison = measure_comparison(people.answered[0], release.clock.sample_rate)
    speed = Speed(step, measure_dialogue(release), answer, comparison, threads, precision)
    spent = time.monotonic() - start
    plan = make_plan(speed, minutes, spent, len(people.answered), seed)
    for line in announce(plan, 60 * minutes - spent):
        console.print(line)
    console.print(f"Ready at about {datetime.now() + timedelta(seconds=plan.seconds):%H:%M}.")
    write_plan(path, plan)
    return plan


def train_stage(output: Path, index: int, plan: Plan, overrides: Sequence[str]) -> Path:
    """Trains one stage, from the release of the stage before, in a process of its own; returns its folder."""
    stage, steps, folder = STAGES[index], plan.steps[index], output / STAGES[index]
    command = [sys.executable, "-m", "vidchat", "train", f"stage={stage}", "data=folder"]
    command += [f"data.root={output / 'data'}", f"output_dir={folder}", f"stage.steps={steps}", "data.max_chunks=14"]
    command += ["stage.module.release_dtype=float16", f"trainer.precision={plan.speed.precision}"]
    command += [f"init_from={output / STAGES[index - 1] / 'release'}"] if index else []
    console.rule(f"training {stage}, {steps} steps")
    threads = dict.fromkeys(VARIABLES, str(plan.speed.threads))
    subprocess.run([*command, *overrides], env=os.environ | threads, check=True)
    return folder


def adjust_last_stage(plan: Plan, seconds_left: float) -> Plan:
    """Returns the plan with as many steps of the last stage as now fit; the load of the machine may have changed."""
    step = measure_step(load_release(SHIPPED), plan.speed.threads, plan.speed.precision)
    steps = steps_that_fit(plan, seconds_left, replace(plan.speed, step=step))
    console.print(f"A step takes {step:.2f} s now: {steps} steps of the last stage ({plan.steps[2]} were planned).")
    return replace(plan, steps=(*plan.steps[:2], steps))


def demo(
    output: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("outputs/demo"),
    minutes: Annotated[float, typer.Option(help="Total time; training takes what the rest leaves.")] = 15,
    dialogues: Annotated[int | None, typer.Option(help="Number of training dialogues, instead of what fits.")] = None,
    steps: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Training steps of the three stages, instead of what fits.")
    ] = None,
    answers: Annotated[int, typer.Option(help="Number of test dialogues to answer, if time allows.")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the rendered people.")] = 0,
    override: Annotated[list[str] | None, typer.Option(help="More settings for vidchat train.")] = None,
) -> None:
    """Renders people, trains a model on them, answers unseen people and writes a page with answers and scores."""
    if find_spec("matplotlib") is None:
        sys.exit("error: the demo draws with matplotlib; install it with: pip install 'vidchat[demo]'")
    start = time.monotonic()
    output = output.resolve()
    people = render_people(output / "test", answers, seed)
    plan = make_or_read_plan(output, people, minutes, seed, start)
    plan = replace(plan, dialogues=dialogues or plan.dialogues, steps=steps or plan.steps)
    console.rule(f"rendering {plan.dialogues} dialogues")
    render(output / "data", plan.dialogues, plan.seed)
    folders = [train_stage(output, index, plan, override or []) for index in (0, 1)]
    if steps is None and not folders[-1].with_name(STAGES[2]).exists():
        plan = adjust_last_stage(plan, 60 * plan.minutes - (time.monotonic() - start))
        write_plan(output / "plan.json", plan)
    folders.append(train_stage(output, 2, plan, override or []))
    score_and_show(output, People(people.answered[: plan.answers], people.others), folders)
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes.")


def score_and_show(output: Path, people: People, stages: Sequence[Path]) -> None:
    """Answers with the model just trained and with the shipped one, scores both, and writes the page."""
    console.rule("answering")
    systems = Answers(output, people.others, people.answered)
    scores = systems.score({"just trained": stages[-1] / "release", "shipped": SHIPPED})
    shown = _columns(systems, scores)
    chance = {
        "identity": 1 / len(systems.references),
        "answer": 1 / len(cases()),
        "topic": 1 / len(TOPICS),
        "feeling": 1 / len(FEELINGS),
    }
    draw_losses(stages, output / "losses.png")
    draw_sheet(shown[:4], output / "sheet.png", ["initiator", "truth", "shipped"])
    page = write_page(output, shown, scores, chance, systems.notes())
    for name, s in scores.items():
        console.print(
            f"{name:14} face {s.identity:.0%}, mouth r {s.mouth:.2f} ({s.mouth_shuffled:.2f} with another audio), "
            f"answer {percent(s.answer, len(s.heard))}, topic {s.topic:.0%}, feeling {s.feeling:.0%}, {s.psnr:.1f} dB"
        )
    console.print("chance         " + ", ".join(f"{name} {value:.0%}" for name, value in chance.items()))
    console.print(f"Open [bold]{page}[/bold]")


def _columns(systems: Answers, scores: Mapping[str, Scores]) -> list[Shown]:
    return [
        Shown(_title(dialogue), true_case(dialogue).answer, clips, {name: s.heard[i] for name, s in scores.items()})
        for i, (dialogue, clips) in enumerate(zip(systems.test, systems.clips, strict=True))
    ]


def _title(dialogue: Dialogue) -> str:
    case, question = true_case(dialogue), dialogue.question
    text = question.text if question else ""
    return f"“{text}”, asked in a {case.expression} way. Right answer: “{case.answer}”"


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on the given arguments, by default those of this process."""
    app = typer.Typer(add_completion=False)
    app.command()(demo)
    app(words, prog_name="vidchat demo")


if __name__ == "__main__":
    main()
