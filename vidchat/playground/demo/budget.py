"""The demo's plan: the numbers of encounters and training steps that fit into a time limit at a measured speed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from vidchat.playground.demo.measure import VOICES

SHARES = (0.05, 0.09, 0.86)
"""The stages' shares of all training steps."""
ENCOUNTERS_PER_STEP = 0.2
"""An encounter has about three questions, each of which is asked four times by other people."""
MOST_ENCOUNTERS, FEWEST_ENCOUNTERS, FEWEST_STEPS = 600, 16, 30
START_UP = 20.0
"""Seconds that a stage takes besides its steps: imports, the first batch, the export."""
TALKING, FEWEST_CONVERSATIONS = 0.25, 4
"""Largest share of the time for conversations, and the number of them that is held in any case."""
ANSWERS = 2.4
"""Answers in a conversation, on average."""
ENOUGH_STEPS = 800
"""Models trained for fewer steps show the right faces, but rarely give the right answers."""


@dataclass(frozen=True)
class Speed:
    """Present speed of this machine, with the fastest settings that were tried.

    Attributes:
        step: Seconds of a training step of the last stage, the slowest.
        encounter: Seconds to render and encode an encounter.
        conversation: Seconds to hold a conversation and to listen to a question.
        comparison: Seconds to compare an answer with all sentences of one voice.
        threads: Threads of a training process.
        precision: Lightning precision of a training process.
    """

    step: float
    encounter: float
    conversation: float
    comparison: float
    threads: int
    precision: str

    def talking(self, conversations: int) -> float:
        """Returns the seconds to talk with two models and to score both, the truth and its round trip."""
        return conversations * (3 * self.conversation + 4 * ANSWERS * VOICES * self.comparison)


@dataclass(frozen=True)
class Plan:
    """What the demo does. It is saved in the demo's folder, so that the same command continues with the same plan."""

    encounters: int
    steps: tuple[int, int, int]
    speed: Speed
    seed: int
    minutes: float
    conversations: int = 16

    @property
    def rendering(self) -> float:
        """Seconds to render the training data."""
        return self.encounters * self.speed.encounter

    @property
    def training(self) -> float:
        """Seconds to train the three stages."""
        return sum(self.steps) * self.speed.step + len(SHARES) * START_UP

    @property
    def talking(self) -> float:
        """Seconds to talk and score."""
        return self.speed.talking(self.conversations)

    @property
    def seconds(self) -> float:
        """Seconds from the plan to the page; more than the limit if even the smallest plan does not fit."""
        return self.rendering + self.training + self.talking


def make_plan(speed: Speed, minutes: float, spent: float, conversations: int, seed: int) -> Plan:
    """Returns the plan with the most encounters and training steps that fit.

    Args:
        speed: Measured speed.
        minutes: Time limit, from the command's start to the page.
        spent: Seconds of it already spent.
        conversations: Conversations of the test; the plan has fewer if they took a large share of the time.
        seed: Seed of the data set.
    """
    while conversations > FEWEST_CONVERSATIONS and speed.talking(conversations) > TALKING * 60 * minutes:
        conversations -= 1
    left = 60 * minutes - spent - len(SHARES) * START_UP - speed.talking(conversations)
    steps = left / (speed.step + ENCOUNTERS_PER_STEP * speed.encounter)
    encounters = min(MOST_ENCOUNTERS, max(FEWEST_ENCOUNTERS, int(ENCOUNTERS_PER_STEP * steps)))
    steps = max(FEWEST_STEPS, int((left - encounters * speed.encounter) / speed.step))
    first, second = (max(5, round(share * steps)) for share in SHARES[:2])
    last = max(5, int(steps) - first - second)
    return Plan(encounters, (first, second, last), speed, seed, minutes, conversations)


def announce(plan: Plan, left: float) -> list[str]:
    """Returns lines that state the plan, the time of each part and what to expect, with `left` seconds left."""
    steps, speed = sum(plan.steps), plan.speed
    lines = [
        f"A training step takes {speed.step:.2f} s here ({speed.precision}, {speed.threads} threads), "
        f"an encounter {speed.encounter:.2f} s to render and encode.",
        f"Plan for {plan.minutes:g} minutes: {plan.encounters} encounters ({_minutes(plan.rendering)}), "
        f"{' + '.join(map(str, plan.steps))} training steps ({_minutes(plan.training)}), "
        f"{plan.conversations} conversations with each model ({_minutes(plan.talking)}).",
    ]
    if plan.seconds > left + speed.step:
        lines.append(f"This is the smallest plan; it takes {_minutes(plan.seconds - left)} more than the limit.")
    if steps < ENOUGH_STEPS:
        lines.append(
            f"After {steps} steps a model shows the right faces, but rarely gives the right answers. `make demo "
            "MINUTES=60` trains longer; the shipped model shows the result of a long training."
        )
    return lines


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"


def steps_that_fit(plan: Plan, seconds: float, speed: Speed) -> int:
    """Returns the steps of the last stage that fit into the time left, at most 1.5 times the planned number.

    Args:
        plan: Plan made at the start.
        seconds: Seconds left.
        speed: Speed measured now.
    """
    left = seconds - START_UP - speed.talking(plan.conversations)
    return max(min(FEWEST_STEPS, plan.steps[2]), min(int(1.5 * plan.steps[2]), int(left / speed.step)))


def read_plan(path: Path) -> Plan | None:
    """Returns the plan of an earlier start of the same command, or `None`."""
    if not path.is_file():
        return None
    values = json.loads(path.read_text())
    return Plan(**{**values, "steps": tuple(values["steps"]), "speed": Speed(**values["speed"])})


def write_plan(path: Path, plan: Plan) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(plan), indent=1))
