"""Is each answer of a conversation the right one? The first, the second, the third, and after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.spoken_distance import Floats, cepstra, nearest_sentence
from vidchat.dialogue import Dialogue
from vidchat.playground.people.exchanges import Kind, possible_answers, right_answer
from vidchat.playground.people.script import Case, cases
from vidchat.playground.people.speaker_voice import Voice, speak

PAUSE = 0.45
"""Seconds between the sentences of a candidate."""


@dataclass(frozen=True)
class Asked:
    """A question of a conversation, and what is known of its right answer.

    Attributes:
        turn: Index of the answer in the dialogue's turns.
        number: 1 for the first question of the conversation.
        kind: Whether the question names its topic, or follows up.
        case: Topic and the asker's feeling.
        long: Whether the right answer has two sentences.
        interrupts: Whether the question interrupted the answer before.
        interrupted: Whether the next question interrupts the answer, so that the recorded one breaks off.
    """

    turn: int
    number: int
    kind: Kind
    case: Case
    long: bool
    interrupts: bool
    interrupted: bool


def questions(dialogue: Dialogue) -> Iterator[Asked]:
    """Yields the questions of a rendered dialogue that are answered, if each turn is a clip of its own."""
    number, question = 0, None
    for index, turn in enumerate(dialogue.turns):
        truth = turn.clip.truth
        if "kind" not in truth:
            continue
        if turn.role == "initiator":
            number, question = number + 1, truth
        elif question is not None and truth.get("speaks", True):
            case, long = Case(truth["topic"], truth["expression"]), len(question["phrases"]) > 1
            yield Asked(index, number, truth["kind"], case, long, question["interrupts"], truth["interrupted"])


class AnswerReader:
    """Tells which of the twelve possible answers a waveform is, as the nearest one spoken by any of several voices.

    Args:
        voices: Records of the voices (`truth["voice"]`); each adds to the time of a comparison.
        sample_rate: Sample rate of the waveforms.
    """

    def __init__(self, voices: Sequence[dict[str, Any]], sample_rate: int) -> None:
        self.voices, self.sample_rate = [Voice(**voice) for voice in voices], sample_rate
        self._spoken: dict[tuple[Kind, bool], dict[str, list[Floats]]] = {}

    def read(self, waveform: NDArray[np.float32], kind: Kind, long: bool) -> Case:
        """Returns the topic and the feeling of the answer in a waveform (n,) to a question of this form."""
        if (kind, long) not in self._spoken:
            self._spoken[kind, long] = self._speak(kind, long)
        words = nearest_sentence(waveform, self._spoken[kind, long], self.sample_rate)
        return cases()[possible_answers(kind, long).index(words)]

    def _speak(self, kind: Kind, long: bool) -> dict[str, list[Floats]]:
        return {
            " ".join(right_answer(kind, case, long)): [
                cepstra(self._say(right_answer(kind, case, long), voice.feeling(case.expression)), self.sample_rate)
                for voice in self.voices
            ]
            for case in cases()
        }

    def _say(self, sentences: Sequence[str], voice: Voice) -> NDArray[np.float32]:
        pause = np.zeros(round(PAUSE * self.sample_rate), dtype=np.float32)
        pieces = [
            piece for sentence in sentences for piece in (speak(sentence, voice, self.sample_rate).waveform, pause)
        ]
        return np.concatenate(pieces[:-1])
