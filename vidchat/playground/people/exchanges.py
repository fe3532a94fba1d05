"""The words of an encounter: several questions and answers, each answer decided by words and the asker's feeling.

A question names its topic, or follows up ("tell me more") on the topic that was named last: then the earlier words
decide. Who is asked at length answers at length. Openings never tell the asker's feeling, only face and voice do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vidchat.playground.people.script import ANSWERS, FEELINGS, QUESTIONS, TOPICS, Case, cases

Kind = Literal["topic", "more"]

OPENINGS = ("hello there.", "i have a question.", "let me ask you something.", "we have a little time.")
NEXT_QUESTIONS = ("and what about {topic}?", "do you like {topic} too?", *QUESTIONS)
INTERRUPTING_QUESTIONS = ("sorry what about the {topic}?", "wait do you like {topic}?")
FOLLOW_UPS = ("tell me more.", "and then what?")
LATER_ANSWERS = {"happy": "let us go and find some {topic}", "sad": "we can leave the {topic} for now"}
"""Answers to follow-ups, by the asker's feeling."""
ADDITIONS = {"happy": "thank you for asking", "sad": "maybe another day"}
"""Second sentence of a long answer, by the asker's feeling."""

LONG, FOLLOWING, INTERRUPTED = 0.3, 0.35, 0.2
"""Shares of questions of several sentences, of later questions that follow up, of answers that are interrupted."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
        kind: Whether the question names its topic, or asks for more about the last one.
        case: Topic and the asker's feeling.
        question: Sentences.
        answer: Sentences of the right answer.
        interrupted: Whether the asker's next question begins before the answer ends.
    """

    kind: Kind
    case: Case
    question: tuple[str, ...]
    answer: tuple[str, ...]
    interrupted: bool


def right_answer(kind: Kind, case: Case, long: bool) -> tuple[str, ...]:
    """Sentences of the right answer."""
    words = (ANSWERS if kind == "topic" else LATER_ANSWERS)[case.expression]
    return (words.format(topic=case.topic), *([ADDITIONS[case.expression]] if long else []))


def possible_answers(kind: Kind, long: bool) -> tuple[str, ...]:
    """Words of every answer to questions of this form; one of them is right."""
    return tuple(" ".join(right_answer(kind, case, long)) for case in cases())


def draw_exchanges(rng: np.random.Generator, first: Case, phrasing: int, count: int) -> tuple[Exchange, ...]:
    """Draws the words of an encounter.

    Args:
        rng: Source of every choice but the first question.
        first: Topic and feeling of the first question.
        phrasing: Phrasing of the first question.
        count: Number of questions.
    """
    exchanges: list[Exchange] = []
    for number in range(count):
        interrupts = bool(exchanges) and exchanges[-1].interrupted
        follows = bool(exchanges) and not interrupts and rng.random() < FOLLOWING
        case = first if number == 0 else _next_case(rng, exchanges[-1].case, follows)
        long = not interrupts and rng.random() < LONG
        question = first.question(phrasing) if number == 0 else _question(rng, case, follows, interrupts)
        kind: Kind = "more" if follows else "topic"
        exchanges.append(
            Exchange(
                kind=kind,
                case=case,
                question=(*([_choose(rng, OPENINGS)] if long else []), question),
                answer=right_answer(kind, case, long),
                interrupted=number + 1 < count and rng.random() < INTERRUPTED,
            )
        )
    return tuple(exchanges)


def _next_case(rng: np.random.Generator, last: Case, follows: bool) -> Case:
    """A feeling drawn anew, and the last topic or another one."""
    topic = last.topic if follows else _choose(rng, [topic for topic in TOPICS if topic != last.topic])
    return Case(topic, _choose(rng, FEELINGS))


def _question(rng: np.random.Generator, case: Case, follows: bool, interrupts: bool) -> str:
    phrasings = FOLLOW_UPS if follows else INTERRUPTING_QUESTIONS if interrupts else NEXT_QUESTIONS
    return _choose(rng, phrasings).format(topic=case.topic)


def _choose(rng: np.random.Generator, among: Sequence[str]) -> str:
    return among[int(rng.integers(len(among)))]
