"""One person's part in an encounter, from its first frame to its last: speaking, listening, waiting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidchat.playground.people.cast import Speaker
from vidchat.playground.people.encounter import TRACKS, Encounter, Span, SpokenTurn
from vidchat.playground.people.head import Expression, Pose
from vidchat.playground.people.listening import Feeling, Reactions, hum, react
from vidchat.playground.people.performance import BLINK, draw_sway, lips
from vidchat.playground.people.speaker_voice import Word

Floats = NDArray[np.float64]

NOD, BOW = 1.2, 0.018
"""How far a nod turns the head down, and how far it lowers it."""
ANSWER_RISE, QUESTION_LEAD, QUESTION_RISE, FEELING_HOLD, FEELING_FALL = 0.40, 0.20, 0.35, 0.15, 0.40
"""Seconds in which a speaker's feeling comes and goes."""
BLINK_GAP, GLANCE_GAP = (1.4, 3.2), (0.7, 1.6)
"""Seconds between spontaneous blinks, and between glances of who does not listen."""
GLANCE, CONTACT = 0.35, 0.05
"""Spread of the eyes' direction during glances, and during eye contact."""


@dataclass(frozen=True)
class Track:
    """One person's frames and audio of a whole encounter.

    Attributes:
        poses: One per frame.
        waveform: float32 (samples,), exactly as long as the frames.
        loudness: Root mean square of the waveform during each frame.
        nod: Phase of a nod at each frame, 0 outside of nods, up to 1 at their end.
        speaking: Whether the person speaks during each frame; backchannels don't count.
        turns: The person's own turns.
        reactions: What the person does as a listener.
        backchannels: Spans of hums.
    """

    speaker: Speaker
    poses: tuple[Pose, ...]
    waveform: NDArray[np.float32]
    loudness: Floats
    nod: Floats
    speaking: NDArray[np.bool_]
    turns: tuple[SpokenTurn, ...]
    reactions: Reactions
    backchannels: tuple[Span, ...]

    @property
    def words(self) -> tuple[Word, ...]:
        return tuple(word for turn in self.turns for word in turn.words)

    @property
    def phrases(self) -> tuple[Span, ...]:
        return tuple(phrase for turn in self.turns for phrase in turn.phrases)

    def truth(self) -> dict[str, Any]:
        """Everything that is known exactly, per frame and in seconds of the encounter, as plain JSON."""
        return {
            "identity": self.speaker.identity.record(),
            "voice": self.speaker.voice.record(),
            "words": [[word.text, word.start, word.end] for word in self.words],
            "phrases": self.phrases,
            "nods": self.reactions.nods,
            "backchannels": self.backchannels,
            "speaking": self.speaking.astype(int).tolist(),
            "mouth": [round(pose.mouth, 4) for pose in self.poses],
            "nod": [round(float(phase), 3) for phase in self.nod],
            "gaze": [[round(value, 3) for value in pose.gaze] for pose in self.poses],
            "smile": [round(Expression.blend(pose.expression, pose.intensity).smile, 3) for pose in self.poses],
            "blink": [round(pose.blink, 3) for pose in self.poses],
            "loudness": [round(float(value), 5) for value in self.loudness],
        }


def perform_tracks(encounter: Encounter, sample_rate: int) -> tuple[Track, Track]:
    """The initiator's and the responder's tracks."""
    first, second = (_perform(encounter, person, sample_rate) for person in (0, 1))
    return first, second


def _perform(encounter: Encounter, person: int, sample_rate: int) -> Track:
    rng, speaker = encounter.generator(TRACKS[person]), encounter.people[person]
    own = tuple(turn for turn in encounter.turns if turn.person == person)
    reactions = react([turn for turn in encounter.turns if turn.person != person], rng)
    fps, frames = encounter.fps, encounter.frames
    speech = np.zeros(round(frames * sample_rate / fps), dtype=np.float32)
    for turn in own:
        _add(speech, turn.waveform, turn.onset, sample_rate)
    waveform = speech.copy()
    assent = hum(speaker.voice, np.concatenate([turn.waveform for turn in own]), sample_rate)
    for onset in reactions.backchannels:
        _add(waveform, assent.waveform, onset, sample_rate)
    _, mouth, width = lips(speech, frames, fps, sample_rate)
    loudness = lips(waveform, frames, fps, sample_rate)[0]
    time = np.arange(frames) / fps
    nod = sum((_phase(span, time) for span in reactions.nods), np.zeros(frames))
    feelings = [*reactions.feelings, *(_feeling(turn, fps) for turn in own)]
    blink = _blinks(reactions.blinks, {turn.first for turn in encounter.turns}, frames, fps, rng)
    return Track(
        speaker=speaker,
        poses=_poses(mouth, width, nod, blink, _gaze(reactions.contact, time, rng), feelings, rng, fps),
        waveform=waveform,
        loudness=loudness,
        nod=nod,
        speaking=np.any([(time + 1 / fps > turn.onset) & (time < turn.offset) for turn in own], axis=0),
        turns=own,
        reactions=reactions,
        backchannels=tuple((onset, round(onset + assent.seconds, 4)) for onset in reactions.backchannels),
    )


def _add(waveform: NDArray[np.float32], piece: NDArray[np.float32], onset: float, sample_rate: int) -> None:
    first = round(onset * sample_rate)
    waveform[first : first + len(piece)] += piece


def _phase(span: Span, time: Floats) -> Floats:
    """Share of the span that has passed; 0 before and after it."""
    share = (time - span[0]) / (span[1] - span[0])
    return np.where((share > 0) & (share <= 1), share, 0.0)


def _feeling(turn: SpokenTurn, fps: int) -> Feeling:
    """A speaker's feeling. An answer begins at rest, so that its first frame does not give it away."""
    begin, end = turn.first / fps, turn.offset + FEELING_HOLD
    if turn.person == 1:
        return Feeling(turn.expression, begin + 0.04, ANSWER_RISE, end, FEELING_FALL)
    return Feeling(turn.expression, begin - QUESTION_LEAD, QUESTION_RISE, end, FEELING_FALL)


def _poses(
    mouth: Floats,
    width: Floats,
    nod: Floats,
    blink: Floats,
    gaze: Floats,
    feelings: Sequence[Feeling],
    rng: np.random.Generator,
    fps: int,
) -> tuple[Pose, ...]:
    """One pose per frame: a resting pose, slow sway, movements with the stress of speech, and nods."""
    time = np.arange(len(mouth)) / fps
    stress = np.convolve(mouth, np.hanning(9) / np.hanning(9).sum(), mode="same")
    rest = rng.normal(size=5) * np.array([1.6, 0.20, 0.15, 0.010, 0.006])
    sway = np.stack([draw_sway(rng, time) for _ in range(5)]) * np.array([[2.2], [0.35], [0.2], [0.010], [0.004]])
    tilt, turn, down, x, y = rest[:, None] + sway
    dip = rng.uniform(0.9, 1.15) * np.sin(np.pi * nod) ** 2
    down, y = down + 0.55 * stress + NOD * dip, y + 0.006 * stress + BOW * dip
    expression, intensity = _blend(feelings, time)
    return tuple(
        Pose(
            mouth=float(mouth[n]), width=float(width[n]), blink=float(blink[n]),
            gaze=(float(gaze[n, 0] - 0.35 * turn[n]), float(gaze[n, 1])),
            turn=float(turn[n]), nod=float(down[n]), tilt=float(tilt[n]), shift=(float(x[n]), float(y[n])),
            expression=expression[n], intensity=float(intensity[n]),
        )
        for n in range(len(mouth))
    )  # fmt: skip


def _blend(feelings: Sequence[Feeling], time: Floats) -> tuple[list[str], Floats]:
    """The stronger of the feelings at each time, weakened by the other: a change passes through rest."""
    names = ("happy", "sad")
    each = np.stack(
        [
            np.max([np.zeros_like(time), *(f.at(time) for f in feelings if f.expression == name)], axis=0)
            for name in names
        ]
    )
    return [names[index] for index in each.argmax(0)], each.max(0) - each.min(0)


def _blinks(heard: Iterable[float], stills: set[int], frames: int, fps: int, rng: np.random.Generator) -> Floats:
    """Spontaneous blinks and those after heard phrases, none during the first frame of any turn."""
    starts, at = [round(time * fps) for time in heard], rng.uniform(0.3, 1.4)
    while at * fps < frames:
        starts.append(int(at * fps))
        at += rng.uniform(*BLINK_GAP)
    blink = np.zeros(frames)
    for n in sorted(starts):
        span = range(n, min(n + len(BLINK), frames))
        if not stills & set(span) and not blink[max(0, n - 2) : n + 1].any():
            blink[n : n + len(span)] = BLINK[: len(span)]
    return blink


def _gaze(contact: Sequence[Span], time: Floats, rng: np.random.Generator) -> Floats:
    """(frames, 2): the eyes are on the other person, or glance around."""
    look, at = np.zeros((len(time), 2)), 0.0
    while at <= time[-1]:
        look[time >= at] = rng.normal(size=2) * GLANCE
        at += rng.uniform(*GLANCE_GAP)
    for start, end in contact:
        look[(time >= start) & (time < end)] = rng.normal(size=2) * CONTACT
    return look
