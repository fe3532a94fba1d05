"""The demo's plan: the dialogues and training steps that fit into a number of minutes at a measured speed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

SHARES = (0.05, 0.09, 0.86)
"""The stages' shares of all training steps, as 60, 120 and 1,100 were measured to do well."""
DIALOGUES_PER_STEP = 0.8
MOST_DIALOGUES, FEWEST_DIALOGUES, FEWEST_STEPS = 3000, 64, 30
START_UP = 20.0
"""Seconds that a stage takes beside its steps: imports, the first batch, the export."""
ANSWERING, FEWEST_ANSWERS = 0.25, 6
"""The share of all minutes that answering may take, as long as that leaves a few answers."""
ENOUGH_STEPS = 800
"""Fewer are seen to teach faces, but hardly which answer is right."""


@dataclass(frozen=True)
class Speed:
    """How fast this machine works now, with the fastest settings that were tried.

    Attributes:
        step: Seconds of a training step of the last stage, the dearest.
        dialogue: Seconds to render and encode a dialogue.
        answer: Seconds to answer one.
        comparison: Seconds to compare an answer with all that one voice could have said.
        threads: Threads of a training process.
        precision: Its Lightning precision.
    """

    step: float
    dialogue: float
    answer: float
    comparison: float
    threads: int
    precision: str

    def answering(self, answers: int) -> float:
        """Seconds in which two models answer, beside the truth and its round trip, and all are compared with all."""
        return 3 * answers * self.answer + 4 * answers**2 * self.comparison


@dataclass(frozen=True)
class Plan:
    """What the demo does: kept in its folder, so that the same command goes on with the same plan."""

    dialogues: int
    steps: tuple[int, int, int]
    speed: Speed
    seed: int
    minutes: float
    answers: int = 24

    @property
    def rendering(self) -> float:
        """Seconds."""
        return self.dialogues * self.speed.dialogue

    @property
    def training(self) -> float:
        """Seconds."""
        return sum(self.steps) * self.speed.step + len(SHARES) * START_UP

    @property
    def answering(self) -> float:
        """Seconds."""
        return self.speed.answering(self.answers)

    @property
    def seconds(self) -> float:
        """From the plan to the page: more than was given if even the least does not fit."""
        return self.rendering + self.training + self.answering


def make_plan(speed: Speed, minutes: float, spent: float, answers: int, seed: int) -> Plan:
    """The most dialogues and steps that fit.

    Args:
        speed: Measured.
        minutes: The whole budget, from the command's start to the page.
        spent: Seconds of it that are gone already.
        answers: Test dialogues to be answered at the end; fewer are if that took a large share of the time.
        seed: Of the data set.
    """
    while answers > FEWEST_ANSWERS and speed.answering(answers) > ANSWERING * 60 * minutes:
        answers -= 1
    left = 60 * minutes - spent - len(SHARES) * START_UP - speed.answering(answers)
    steps = left / (speed.step + DIALOGUES_PER_STEP * speed.dialogue)
    dialogues = min(MOST_DIALOGUES, max(FEWEST_DIALOGUES, int(DIALOGUES_PER_STEP * steps)))
    steps = max(FEWEST_STEPS, int((left - dialogues * speed.dialogue) / speed.step))
    first, second = (max(5, round(share * steps)) for share in SHARES[:2])
    last = max(5, int(steps) - first - second)
    return Plan(dialogues, (first, second, last), speed, seed, minutes, answers)


def announce(plan: Plan, left: float) -> list[str]:
    """What will be done, how long each part takes, and what to expect of it, if `left` seconds are left."""
    steps, speed = sum(plan.steps), plan.speed
    lines = [
        f"A training step takes {speed.step:.2f} s here ({speed.precision}, {speed.threads} threads), "
        f"a dialogue {speed.dialogue:.2f} s to render and encode.",
        f"Plan for {plan.minutes:g} minutes: {plan.dialogues} dialogues ({_minutes(plan.rendering)}), "
        f"{' + '.join(map(str, plan.steps))} training steps ({_minutes(plan.training)}), "
        f"{plan.answers} answers of each model ({_minutes(plan.answering)}).",
    ]
    if plan.seconds > left + speed.step:
        lines.append(f"That is the least, and takes {_minutes(plan.seconds - left)} more than was given.")
    if steps < ENOUGH_STEPS:
        lines.append(
            f"{steps} steps teach a model faces, but hardly which answer is right: `make demo MINUTES=60` gives it "
            "longer, and the shipped model shows what an hour does."
        )
    return lines


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def steps_that_fit(plan: Plan, seconds: float, speed: Speed) -> int:
    """Steps of the last stage after a second look at the clock, at most half as many again as planned.

    Args:
        plan: Made at the start.
        seconds: What is left of its minutes.
        speed: As measured now.
    """
    left = seconds - START_UP - speed.answering(plan.answers)
    return max(min(FEWEST_STEPS, plan.steps[2]), min(int(1.5 * plan.steps[2]), int(left / speed.step)))


def read_plan(path: Path) -> Plan | None:
    """The plan of an earlier start of the same command, or `None`."""
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    return Plan(**{**values, "steps": tuple(values["steps"]), "speed": Speed(**values["speed"])})


def write_plan(path: Path, plan: Plan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(plan), indent=1))
