"""The command `vidchat demo` (or `make demo`): from an empty folder to a page of conversations and scores.

Shows the shipped model in conversation with people it has never seen, measures the machine, and prints a plan that fits
the time limit. Then renders encounters, trains three stages, talks with both models, and scores them beside truth and
chance.
"""

from __future__ import annotations

from vidchat.runtime.threads import VARIABLES  # (before torch)

# isort: split
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from vidchat.playground.demo.answers import MOST_CHUNKS, act_by_model, act_in_round_trips, act_truly
from vidchat.playground.demo.budget import Plan, Speed, announce, make_plan, read_plan, steps_that_fit, write_plan
from vidchat.playground.demo.measure import Measures, fit_readers, percent
from vidchat.playground.demo.page import draw_losses, draw_sheet, write_page
from vidchat.playground.demo.people import TestPeople, render_test
from vidchat.playground.demo.sections import make_notes, make_sections
from vidchat.playground.demo.speed import BATCH, measure_comparison, measure_encounter, measure_step, measure_training
from vidchat.release import Release, load_release
from vidchat.shipped import find

STAGES = ("pretrain_visual", "pretrain_av", "sft_dyadic")
SHIPPED = find("checkpoints/demo")
TEST_SEED = 1000
"""Added to the seed of the test people, whom neither model has seen."""
OTHERS = 8
"""Encounters of the test people to which the readers of mouths and nods are fitted."""
FIRST = 3
"""Conversations that are shown before training."""
console = Console()


def show_first(output: Path, people: TestPeople, shipped: Release) -> float:
    """Writes a page with some films of the shipped model, to watch during training; returns the seconds of one."""
    console.rule("the shipped model talks")
    few, films = people.first(FIRST), output / "films"
    start = time.monotonic()
    model = act_by_model("shipped", few, shipped, films)
    seconds = (time.monotonic() - start) / FIRST
    note = "The shipped model talks. The model in training and all scores follow at the end."
    page = write_page(
        output, make_sections(few, {"truth": act_truly(few, shipped, films), "shipped": model}, {}), {}, [note]
    )
    console.print(f"Its first films are ready to watch: [bold]{page}[/bold]")
    return seconds


def make_or_read_plan(
    output: Path, people: TestPeople, shipped: Release, minutes: float, seed: int, start: float
) -> Plan:
    """Returns the plan of an earlier start of this command, or measures the machine, makes a new plan and prints it."""
    path = output / "plan.json"
    if (plan := read_plan(path)) is not None:
        console.print(f"continuing with the plan in {path}; choose another --output to start afresh")
        return plan
    conversation = show_first(output, people, shipped)
    console.rule("measuring this machine")
    step, threads, precision = measure_training(shipped)
    comparison = measure_comparison(people, shipped.clock.sample_rate)
    speed = Speed(step, measure_encounter(shipped), conversation, comparison, threads, precision)
    spent = time.monotonic() - start
    plan = make_plan(speed, minutes, spent, len(people.conversations), seed)
    for line in announce(plan, 60 * minutes - spent):
        console.print(line)
    console.print(f"Ready at about {datetime.now() + timedelta(seconds=plan.seconds):%H:%M}.")
    write_plan(path, plan)
    return plan


def train_stage(output: Path, index: int, plan: Plan, overrides: Sequence[str]) -> Path:
    """Trains one stage, from the release of the stage before, in a process of its own; returns its folder."""
    stage, steps, folder = STAGES[index], plan.steps[index], output / STAGES[index]
    command = [sys.executable, "-m", "vidchat", "train", f"stage={stage}", "data=folder"]
    command += [f"data.root={output / 'data'}", f"output_dir={folder}", f"stage.steps={steps}"]
    command += [f"data.max_chunks={MOST_CHUNKS}", f"data.batch_size={BATCH}"]
    command += ["stage.module.release_dtype=float16", f"trainer.precision={plan.speed.precision}"]
    command += [f"init_from={output / STAGES[index - 1] / 'release'}"] if index else []
    console.rule(f"training {stage}, {steps} steps")
    threads = dict.fromkeys(VARIABLES, str(plan.speed.threads))
    subprocess.run([*command, *overrides], env=os.environ | threads, check=True)
    return folder


def adjust_last_stage(plan: Plan, shipped: Release, seconds_left: float) -> Plan:
    """Returns the plan with as many steps of the last stage as now fit; the load of the machine may have changed."""
    step = measure_step(shipped, plan.speed.threads, plan.speed.precision)
    steps = steps_that_fit(plan, seconds_left, replace(plan.speed, step=step))
    console.print(f"A step takes {step:.2f} s now: {steps} steps of the last stage ({plan.steps[2]} were planned).")
    return replace(plan, steps=(*plan.steps[:2], steps))


def render(folder: Path, encounters: int, seed: int) -> None:
    """Renders the training data on all cores, in a process of its own."""
    command = [sys.executable, "-m", "vidchat", "people", "--output", str(folder)]
    subprocess.run(
        [*command, "--encounters", str(encounters), "--splits", "train", "val", "--seed", str(seed)], check=True
    )


def demo(
    output: Annotated[Path, typer.Option(help="Folder of all results.")] = Path("outputs/demo"),
    minutes: Annotated[float, typer.Option(help="Total time; training takes what the rest leaves.")] = 15,
    encounters: Annotated[int | None, typer.Option(help="Number of training encounters, instead of what fits.")] = None,
    steps: Annotated[
        tuple[int, int, int] | None, typer.Option(help="Training steps of the three stages, instead of what fits.")
    ] = None,
    conversations: Annotated[int, typer.Option(help="Number of test conversations, if time allows.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the rendered people.")] = 0,
    shipped: Annotated[Path, typer.Option(help="Release to show beside the model that is trained.")] = SHIPPED,
    override: Annotated[list[str] | None, typer.Option(help="More settings for vidchat train.")] = None,
) -> None:
    """Renders people, trains a model on them, talks with unseen people and writes a page with films and scores."""
    if find_spec("matplotlib") is None:
        sys.exit("error: the demo draws with matplotlib; install it with: pip install 'vidchat[demo]'")
    start = time.monotonic()
    output, release = output.resolve(), load_release(shipped)
    console.rule("rendering people to talk with")
    people = render_test(output / "test", conversations, OTHERS, seed + TEST_SEED)
    plan = make_or_read_plan(output, people, release, minutes, seed, start)
    plan = replace(plan, encounters=encounters or plan.encounters, steps=steps or plan.steps)
    console.rule(f"rendering {plan.encounters} encounters")
    render(output / "data", plan.encounters, plan.seed)
    folders = [train_stage(output, index, plan, override or []) for index in (0, 1)]
    if steps is None and not folders[-1].with_name(STAGES[2]).exists():
        plan = adjust_last_stage(plan, release, 60 * plan.minutes - (time.monotonic() - start))
        write_plan(output / "plan.json", plan)
    folders.append(train_stage(output, 2, plan, override or []))
    models = {"shipped": release, "just trained": load_release(folders[-1] / "release")}
    score_and_show(output, people.first(plan.conversations), models)
    draw_losses(folders, output / "losses.png")
    console.print(f"{(time.monotonic() - start) / 60:.1f} minutes.")


def score_and_show(output: Path, people: TestPeople, models: Mapping[str, Release]) -> None:
    """Talks with every model, scores all systems, and writes the page."""
    console.rule("talking")
    films, release = output / "films", next(iter(models.values()))
    systems = {"truth": act_truly(people, release, films)}
    systems["round trip"] = act_in_round_trips(people, release)
    systems |= {name: act_by_model(name, people, model, films) for name, model in models.items()}
    measures = Measures(people, systems["truth"], fit_readers(people.others, release), release.clock)
    scores = {name: measures.score(acted) for name, acted in track(systems.items(), "measuring", total=len(systems))}
    sections = make_sections(people, systems, scores)
    draw_sheet([section.shown[0] for section in sections], output / "sheet.png", ["truth", *list(models)[:1]])
    page = write_page(output, sections, scores, make_notes(people, systems))
    for name, s in scores.items():
        right = ", ".join(f"{number}: {percent(*hits)}" for number, hits in s.right.items())
        console.print(
            f"{name:14} face {s.identity:.0%}, mouth r {s.mouth:.2f} ({s.mouth_shuffled:.2f} with another audio), "
            f"right answer to question {right}, feeling {s.feeling:.0%}, length {s.length:.0%}; nods {s.nods:.2f} "
            f"({s.nods_shuffled:.2f} shuffled), mouth shut {s.shut:.0%}"
        )
    console.print(f"Open [bold]{page}[/bold]")


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on the given arguments, by default those of this process."""
    app = typer.Typer(add_completion=False)
    app.command()(demo)
    app(words, prog_name="vidchat demo")


if __name__ == "__main__":
    main()
