"""A turn before it is drawn: the audio, and a pose for every frame that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidchat.dialogue import Role
from vidchat.playground.people.cast import Speaker
from vidchat.playground.people.head import Pose
from vidchat.playground.people.speaker_voice import Utterance, Word, speak

Floats = NDArray[np.float64]

START = (0.16, 0.28)
"""Speech begins between these, in seconds."""
TAIL = 0.24
"""At least so much silence after it."""
SHORTEST = 1.9
"""No clip is shorter, in seconds."""
BLINK = (0.45, 1.0, 0.85, 0.35)
"""A blink, frame by frame at 25 fps."""


@dataclass(frozen=True)
class Performance:
    """A performed turn.

    Attributes:
        text: What is said.
        poses: One per frame; their number is 4k + 1.
        waveform: float32 (samples,), exactly as long as the frames.
        words: Words with their times in seconds.
        loudness: Root mean square of the audio during each frame.
    """

    speaker: Speaker
    expression: str
    text: str
    poses: tuple[Pose, ...]
    waveform: NDArray[np.float32]
    words: tuple[Word, ...]
    loudness: Floats

    def truth(self) -> dict[str, Any]:
        """Returns the exact truth about the turn as plain JSON."""
        return {
            "identity": self.speaker.identity.record(),
            "voice": self.speaker.voice.record(),
            "expression": self.expression,
            "pictures": len(self.poses),
            "words": [[word.text, word.start, word.end] for word in self.words],
            "mouth": [round(pose.mouth, 4) for pose in self.poses],
            "blink": [round(pose.blink, 3) for pose in self.poses],
            "intensity": [round(pose.intensity, 3) for pose in self.poses],
            "loudness": [round(float(value), 5) for value in self.loudness],
        }


def perform(
    speaker: Speaker, role: Role, text: str, expression: str, rng: np.random.Generator, fps: int, sample_rate: int
) -> Performance:
    """Speak the text with a feeling and move the face to it.

    The initiator feels from the first frame on. The responder starts at rest, mouth closed, and the feeling comes
    within half a second: frame 0, from which an answer is generated, does not give the answer away.

    Args:
        rng: Chooses the pause before the speech, blinks and motion; the speech itself is the speaker's.
        fps: Frames per second.
        sample_rate: Samples per second.
    """
    utterance = speak(text, speaker.voice.feeling(expression), sample_rate)
    start = round(float(rng.uniform(*START)), 3)
    frames = _frames(start + utterance.seconds + TAIL, fps)
    waveform = _place(utterance, start, round(frames * sample_rate / fps))
    loudness, mouth, width = lips(waveform, frames, fps, sample_rate)
    poses = _poses(expression, role, mouth, width, rng, fps)
    words = tuple(Word(w.text, round(w.start + start, 4), round(w.end + start, 4)) for w in utterance.words)
    return Performance(speaker, expression, text, poses, waveform, words, loudness)


def _frames(seconds: float, fps: int) -> int:
    """The smallest 4k + 1 that holds the time."""
    return 4 * int(np.ceil((max(seconds, SHORTEST) * fps - 1) / 4)) + 1


def _place(utterance: Utterance, start: float, samples: int) -> NDArray[np.float32]:
    waveform = np.zeros(samples, dtype=np.float32)
    first = round(start * utterance.sample_rate)
    waveform[first : first + len(utterance.waveform)] = utterance.waveform
    return waveform


def lips(waveform: NDArray[np.float32], frames: int, fps: int, sample_rate: int) -> tuple[Floats, Floats, Floats]:
    """Loudness, opening (0..1) and width (-1..1) for each frame, from the audio while it is shown.

    The opening is the loudness over a Hann window of two frames, relative to the turn's loudest, under a power that
    lets quiet vowels show. The lips are wide where the audio is bright ("tea") and rounded where it is dark ("snow").
    """
    step = sample_rate / fps
    reach = round(step)
    padded = np.pad(waveform.astype(np.float64), reach)
    window = np.hanning(2 * reach)
    loudness, soft, bright = np.zeros(frames), np.zeros(frames), np.zeros(frames)
    frequency = np.fft.rfftfreq(2 * reach, 1 / sample_rate)
    for n in range(frames):
        middle = reach + round((n + 0.5) * step)
        piece = padded[middle - reach : middle + reach]
        loudness[n] = np.sqrt(np.mean(padded[middle - reach // 2 : middle + reach // 2] ** 2))
        soft[n] = np.sqrt(np.sum(window * piece**2) / window.sum())
        power = np.abs(np.fft.rfft(window * piece)) ** 2
        low, high = (
            power[(frequency > 250) & (frequency < 1000)].sum(),
            power[(frequency > 1700) & (frequency < 3600)].sum(),
        )
        bright[n] = np.log((high + 1e-6) / (low + 1e-6))
    mouth = np.clip(soft / np.quantile(soft[soft > 0.01], 0.95), 0, 1) ** 0.75 if (soft > 0.01).any() else soft
    mouth[mouth < 0.05] = 0.0
    spoken = mouth > 0
    centre = np.median(bright[spoken]) if spoken.any() else 0.0
    return loudness, mouth, np.tanh(0.45 * (bright - centre)) * np.sqrt(mouth)


def _poses(
    expression: str, role: Role, mouth: Floats, width: Floats, rng: np.random.Generator, fps: int
) -> tuple[Pose, ...]:
    """One pose per frame: a resting pose, slow sway away from it, nods with the stress, blinks."""
    time = np.arange(len(mouth)) / fps
    stress = np.convolve(mouth, np.hanning(9) / np.hanning(9).sum(), mode="same")
    rest = rng.normal(size=5) * np.array([1.6, 0.20, 0.15, 0.010, 0.006])
    sway = np.stack([draw_sway(rng, time) for _ in range(5)]) * np.array([[2.2], [0.35], [0.2], [0.010], [0.004]])
    tilt, turn, nod, x, y = rest[:, None] + sway
    nod, y = nod + 0.55 * (stress - stress[0]), y + 0.006 * (stress - stress[0])
    feeling = np.clip((time - 0.04) / 0.40, 0, 1) if role == "responder" else np.clip(0.75 + time, 0, 1)
    intensity = feeling * feeling * (3 - 2 * feeling)
    blink = _blinks(rng, len(mouth), fps)
    gaze = rng.normal(size=(2, 2)) * 0.12
    look = np.where(time[:, None] < rng.uniform(0.5, 1.6), gaze[0], gaze[1])
    return tuple(
        Pose(
            mouth=float(mouth[n]), width=float(width[n]), blink=float(blink[n]),
            gaze=(float(look[n, 0] - 0.35 * turn[n]), float(look[n, 1])),
            turn=float(turn[n]), nod=float(nod[n]), tilt=float(tilt[n]), shift=(float(x[n]), float(y[n])),
            expression=expression, intensity=float(intensity[n]),
        )
        for n in range(len(mouth))
    )  # fmt: skip


def draw_sway(rng: np.random.Generator, time: Floats) -> Floats:
    """A slow motion that starts from 0."""
    total = np.zeros_like(time)
    for frequency, weight in ((0.25, 0.7), (0.6, 0.35)):
        phase = rng.uniform(0, 2 * np.pi)
        total += weight * (np.sin(2 * np.pi * frequency * rng.uniform(0.8, 1.2) * time + phase) - np.sin(phase))
    return total


def _blinks(rng: np.random.Generator, frames: int, fps: int) -> Floats:
    """Eyes close every one to two seconds, never in the first frame."""
    blink = np.zeros(frames)
    n = int(rng.uniform(0.3, 1.4) * fps)
    while n < frames:
        for i, value in enumerate(BLINK):
            if n + i < frames:
                blink[n + i] = value
        n += int(rng.uniform(1.0, 2.2) * fps)
    return blink
