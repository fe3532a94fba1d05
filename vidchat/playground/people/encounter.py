"""When each person speaks in an encounter: turns of two people on one clock, laid on a grid of four frames.

A span of frames [first, last] has both ends on the grid, so it is 4T+1 frames and any of it can be cut out as a clip.
Between a turn and the next there is room for the listener's nod; an interrupting question comes earlier.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vidchat.playground.people.cast import Plan, Speaker
from vidchat.playground.people.exchanges import Exchange, draw_exchanges
from vidchat.playground.people.performance import START, TAIL
from vidchat.playground.people.speaker_voice import Utterance, Word, speak

_ENCOUNTER = 5  # beside the kinds of generators in cast.py
WORDS, TRACKS, CUTS = 0, (1, 2), 3
"""Purposes of an encounter's generators."""

GRID = 4
"""Frames; turns start and end on multiples of it."""
EXCHANGES = (2, 4)
"""Fewest and most questions of an encounter."""
LEAD = (0.3, 0.6)
"""Seconds before the first turn."""
ROOM = 0.66
"""Seconds between the end of a speech and the next turn: the listener nods, and is at rest again."""
PAUSE = (0.35, 0.55)
"""Seconds between the sentences of a turn."""
REACTION = (0.25, 0.40)
"""Seconds that the interrupted person goes on speaking."""
BROKEN = 0.7
"""Seconds that are spoken at least before a speech breaks off."""
FADE = 0.03
"""Seconds in which a speech that breaks off fades."""

Span = tuple[float, float]


@dataclass(frozen=True)
class SpokenTurn:
    """A turn on the encounter's clock. Times in seconds.

    Attributes:
        person: 0, the initiator, or 1, the responder.
        exchange: Number of the exchange that it belongs to.
        expression: Feeling in face and voice.
        waveform: float32 (samples,), the speech from `onset` on.
        onset: Start of the speech.
        words: Spoken words.
        phrases: Sentences that were spoken to their end.
        first: First frame, on the grid.
        last: Last frame, on the grid; some silence follows the speech.
        settled: Frame on the grid at which a listener has nodded and is at rest again.
        interrupted: Whether the speech broke off.
    """

    person: int
    exchange: int
    expression: str
    waveform: NDArray[np.float32]
    onset: float
    words: tuple[Word, ...]
    phrases: tuple[Span, ...]
    first: int
    last: int
    settled: int
    interrupted: bool

    @property
    def offset(self) -> float:
        """End of the speech."""
        return self.words[-1].end

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(frozen=True)
class Encounter:
    """Two people's turns on one clock.

    Attributes:
        turns: Question, answer, question, ...
        frames: Length, 4k + 1.
    """

    plan: Plan
    exchanges: tuple[Exchange, ...]
    turns: tuple[SpokenTurn, ...]
    frames: int
    fps: int

    @property
    def id(self) -> str:
        return f"e{self.plan.id[1:]}"

    @property
    def people(self) -> tuple[Speaker, Speaker]:
        return self.plan.initiator, self.plan.responder

    def generator(self, purpose: int) -> np.random.Generator:
        """The encounter's own generator of random numbers for one purpose."""
        return np.random.default_rng((*self.plan.seed, _ENCOUNTER, purpose))


def stage(plan: Plan, fps: int, sample_rate: int) -> Encounter:
    """Chooses the words of an encounter, speaks them, and lays them on the clock."""
    rng = np.random.default_rng((*plan.seed, _ENCOUNTER, WORDS))
    exchanges = draw_exchanges(rng, plan.case, plan.phrasing, int(rng.integers(EXCHANGES[0], EXCHANGES[1] + 1)))
    turns: list[SpokenTurn] = []
    beginning = _beginning(grid_up(rng.uniform(*LEAD), fps), rng, fps)
    for number, exchange in enumerate(exchanges):
        question = _place(_speak(plan, 0, number, exchange, rng, sample_rate), *beginning, fps)
        answer = _speak(plan, 1, number, exchange, rng, sample_rate)
        if exchange.interrupted:
            answer = _break_off(answer, rng, sample_rate)
        answer = _place(answer, *_beginning(question.settled, rng, fps), fps)
        beginning = _interrupting(answer, rng, fps) if answer.interrupted else _beginning(answer.settled, rng, fps)
        turns += [question, answer]
    return Encounter(plan, exchanges, tuple(turns), turns[-1].settled + 1, fps)


def grid_up(seconds: float, fps: int) -> int:
    """The first frame on the grid that does not come before this time."""
    return GRID * int(np.ceil(seconds * fps / GRID))


def _beginning(first: int, rng: np.random.Generator, fps: int) -> tuple[int, float]:
    """First frame of a turn and onset of its speech."""
    return first, first / fps + rng.uniform(*START)


def _interrupting(answer: SpokenTurn, rng: np.random.Generator, fps: int) -> tuple[int, float]:
    """First frame and onset of the question that makes the answer break off."""
    onset = answer.offset - rng.uniform(*REACTION)
    return int((onset - START[0]) * fps) // GRID * GRID, onset


def _speak(
    plan: Plan, person: int, number: int, exchange: Exchange, rng: np.random.Generator, sample_rate: int
) -> SpokenTurn:
    """The question or the answer as a turn that begins at 0."""
    speaker, sentences = ((plan.initiator, exchange.question), (plan.responder, exchange.answer))[person]
    voice = speaker.voice.feeling(exchange.case.expression)
    spoken = [speak(sentence, voice, sample_rate) for sentence in sentences]
    waveform, words, phrases = _join(spoken, [float(rng.uniform(*PAUSE)) for _ in spoken[1:]])
    return SpokenTurn(
        person,
        number,
        exchange.case.expression,
        waveform,
        0.0,
        words,
        phrases,
        first=0,
        last=0,
        settled=0,
        interrupted=False,
    )


def _join(
    spoken: list[Utterance], pauses: list[float]
) -> tuple[NDArray[np.float32], tuple[Word, ...], tuple[Span, ...]]:
    """Waveform, words and sentences' spans of utterances with pauses between them."""
    rate, pieces, words, phrases = spoken[0].sample_rate, [], [], []
    position = 0
    for utterance, pause in zip(spoken, [*pauses, 0.0], strict=True):
        start = position / rate
        words += [Word(word.text, start + word.start, start + word.end) for word in utterance.words]
        phrases.append((start, start + utterance.seconds))
        pieces += [utterance.waveform, np.zeros(round(pause * rate), dtype=np.float32)]
        position += len(pieces[-2]) + len(pieces[-1])
    return np.concatenate(pieces), tuple(words), tuple(phrases)


def _break_off(turn: SpokenTurn, rng: np.random.Generator, sample_rate: int) -> SpokenTurn:
    """The turn up to the end of a word in its middle."""
    long_enough = [n for n in range(1, len(turn.words)) if turn.words[n - 1].end >= BROKEN] or [len(turn.words) - 1]
    kept = turn.words[: int(rng.choice(long_enough))]
    samples, fade = round(kept[-1].end * sample_rate), round(FADE * sample_rate)
    waveform = turn.waveform[:samples].copy()
    waveform[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    phrases = tuple(phrase for phrase in turn.phrases if phrase[1] <= kept[-1].end)
    return replace(turn, waveform=waveform, words=kept, phrases=phrases, interrupted=True)


def _place(turn: SpokenTurn, first: int, onset: float, fps: int) -> SpokenTurn:
    """The turn at its place on the clock."""
    return replace(
        turn,
        onset=round(onset, 4),
        words=tuple(Word(word.text, round(word.start + onset, 4), round(word.end + onset, 4)) for word in turn.words),
        phrases=tuple((round(start + onset, 4), round(end + onset, 4)) for start, end in turn.phrases),
        first=first,
        last=grid_up(turn.offset + onset + TAIL, fps),
        settled=grid_up(turn.offset + onset + ROOM, fps),
    )
