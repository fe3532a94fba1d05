"""A speaker's voice, whose register follows the visible build, and the effect of a feeling on it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from vidchat.playground.people.espeak import synthesise
from vidchat.playground.people.person import Build

VARIANTS: dict[Build, tuple[str, ...]] = {
    "man": ("m1", "m2", "m3", "m7"),
    "woman": ("f1", "f2", "f3", "f4"),
    "child": ("f2", "f5"),
}
PITCHES: dict[Build, tuple[int, int]] = {"man": (28, 52), "woman": (40, 60), "child": (80, 98)}
"""In the engine's units, for each build."""

# Feeling: change of pitch, of intonation, and of rate (a factor).
PROSODY: dict[str, tuple[int, int, float]] = {
    "neutral": (0, 0, 1.0),
    "happy": (8, 30, 1.04),
    "sad": (-8, -30, 0.90),
    "surprised": (12, 40, 1.0),
    "angry": (-2, 20, 1.08),
}
PEAK = 0.7
_SILENCE = 0.01
"""Share of full scale below which the audio's ends are cut."""


@dataclass(frozen=True)
class Voice:
    """Parameters of a speaker's voice.

    Attributes:
        variant: espeak-ng's variant of its English voice: a timbre.
        pitch: 0..99.
        intonation: 0..99; how far the pitch moves.
        rate: Words per minute.
    """

    variant: str
    pitch: int
    intonation: int
    rate: int

    def feeling(self, expression: str) -> Voice:
        """Returns this voice with a feeling."""
        pitch, intonation, rate = PROSODY[expression]
        return replace(
            self,
            pitch=int(np.clip(self.pitch + pitch, 0, 99)),
            intonation=int(np.clip(self.intonation + intonation, 0, 99)),
            rate=round(self.rate * rate),
        )

    def record(self) -> dict[str, Any]:
        """Returns the voice as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Word:
    """A spoken word and its time in seconds from the waveform's first sample."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """A spoken text.

    Attributes:
        waveform: float32 (samples,), mono in [-1, 1], without silence at its ends.
        sample_rate: Samples per second of the waveform.
        words: Words with their times, in order.
    """

    waveform: NDArray[np.float32]
    sample_rate: int
    words: tuple[Word, ...]

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sample_rate


def random_voice(rng: np.random.Generator, build: Build) -> Voice:
    """Draws a voice that fits the build: deep for men, higher for women, highest for children."""
    low, high = PITCHES[build]
    return Voice(
        variant=VARIANTS[build][rng.integers(len(VARIANTS[build]))],
        pitch=int(rng.integers(low, high + 1)),
        intonation=int(rng.integers(40, 61)),
        rate=int(rng.integers(165, 191)),
    )


def speak(text: str, voice: Voice, sample_rate: int = 16000) -> Utterance:
    """Speaks a text in a voice; equal arguments give equal samples in any process.

    Raises:
        espeak.SpeechError: espeak-ng is missing or rejects the text.
    """
    speech = synthesise(text, f"en-us+{voice.variant}", voice.rate, voice.pitch, voice.intonation)
    waveform = resample_poly(speech.samples.astype(np.float64) / 32768, *_ratio(sample_rate, speech.sample_rate))
    loud = np.flatnonzero(np.abs(waveform) > _SILENCE)
    first, last = (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(waveform))
    trimmed = waveform[first:last]
    starts = [max(0.0, sample / speech.sample_rate - first / sample_rate) for _, sample in speech.words]
    ends = [*starts[1:], len(trimmed) / sample_rate]
    names = [text[position:].split()[0].strip("?.,!") for position, _ in speech.words]
    words = tuple(Word(name, round(a, 4), round(b, 4)) for name, a, b in zip(names, starts, ends, strict=True))
    peak = float(np.abs(trimmed).max(initial=1e-9))
    return Utterance((trimmed * (PEAK / peak)).astype(np.float32), sample_rate, words)


def _ratio(target: int, source: int) -> tuple[int, int]:
    divisor = int(np.gcd(target, source))
    return target // divisor, source // divisor
