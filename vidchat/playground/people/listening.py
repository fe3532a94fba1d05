"""What a listener does because of what is heard: nods, backchannels, a mirrored feeling, blinks, and eye contact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vidchat.playground.people.encounter import Span, SpokenTurn
from vidchat.playground.people.speaker_voice import Utterance, Voice, speak

Floats = NDArray[np.float64]

NOD_DELAY, NOD_SECONDS = (0.10, 0.28), 0.36
"""Seconds from the end of a heard phrase to the start of a nod, and length of a nod, which is deepest in its middle."""
BACKCHANNEL, BACKCHANNEL_DELAY = 0.5, (0.10, 0.25)
"""Share of the phrases inside a turn that are answered by a backchannel, and how long after their end it begins."""
MHM, MHM_LEVEL = "[[mm h'mm]]", 0.45
"""The backchannel in the engine's phonemes, and its level (root mean square) relative to the person's speech."""
BLINK, BLINK_DELAY = 0.7, (0.04, 0.16)
"""Share of heard phrases with a blink after their end, and how long after it."""
MIRROR = {"happy": 0.8, "sad": 0.5}
"""How strongly a listener's face takes on a heard feeling."""
MIRROR_DELAY, MIRROR_RISE, MIRROR_HOLD, MIRROR_FALL = (0.35, 0.55), 0.35, 0.12, 0.35
"""Seconds after the speech's onset; how fast; after the speech's end; how fast."""
CONTACT_DELAY = 0.25
"""Seconds after which a listener's eyes are on the speaker."""


@dataclass(frozen=True)
class Feeling:
    """An expression that comes, stays and goes. Times in seconds.

    Attributes:
        start: When it begins to come.
        rise: How long it comes.
        end: When it begins to go.
        fall: How long it goes.
        peak: Intensity, 0..1.
    """

    expression: str
    start: float
    rise: float
    end: float
    fall: float
    peak: float = 1.0

    def at(self, time: Floats) -> Floats:
        """Intensity at these times."""
        share = np.clip(np.minimum((time - self.start) / self.rise, (self.end + self.fall - time) / self.fall), 0, 1)
        return self.peak * share * share * (3 - 2 * share)


@dataclass(frozen=True)
class Reactions:
    """What one person does as a listener. Times in seconds of the encounter.

    Attributes:
        nods: Spans of nods.
        backchannels: Onsets of backchannels.
        blinks: Starts of blinks.
        feelings: Mirrored feelings.
        contact: Spans of eye contact.
    """

    nods: tuple[Span, ...]
    backchannels: tuple[float, ...]
    blinks: tuple[float, ...]
    feelings: tuple[Feeling, ...]
    contact: tuple[Span, ...]


def react(heard: Sequence[SpokenTurn], rng: np.random.Generator) -> Reactions:
    """Draws a listener's reactions to the turns of the other person; to one that is interrupted there are none."""
    nods, backchannels, blinks, feelings, contact = [], [], [], [], []
    for turn in heard:
        contact.append((turn.onset + CONTACT_DELAY, turn.offset))
        if turn.interrupted:
            continue
        for number, (_, end) in enumerate(turn.phrases):
            begin = end + rng.uniform(*NOD_DELAY)
            nods.append((round(begin, 4), round(begin + NOD_SECONDS, 4)))
            hums, blinks_too = rng.random() < BACKCHANNEL, rng.random() < BLINK
            if hums and number + 1 < len(turn.phrases):
                backchannels.append(round(end + rng.uniform(*BACKCHANNEL_DELAY), 4))
            if blinks_too:
                blinks.append(end + rng.uniform(*BLINK_DELAY))
        start, stop = turn.onset + rng.uniform(*MIRROR_DELAY), turn.offset + MIRROR_HOLD
        feelings.append(Feeling(turn.expression, start, MIRROR_RISE, stop, MIRROR_FALL, MIRROR[turn.expression]))
    return Reactions(tuple(nods), tuple(backchannels), tuple(blinks), tuple(feelings), tuple(contact))


def hum(voice: Voice, speech: NDArray[np.float32], sample_rate: int) -> Utterance:
    """A hum of assent, lips closed, quieter than the person's speech (samples,)."""
    spoken = _mhm(voice, sample_rate)
    level = MHM_LEVEL * np.sqrt(np.mean(speech**2) / np.mean(spoken.waveform**2))
    return Utterance((spoken.waveform * level).astype(np.float32), sample_rate, ())


@lru_cache(maxsize=64)
def _mhm(voice: Voice, sample_rate: int) -> Utterance:
    return speak(MHM, voice, sample_rate)
