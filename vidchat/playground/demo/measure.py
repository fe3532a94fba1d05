"""Scores of answers and of listeners on rendered people.

Is the face that of the reference? Does the mouth follow the audio? Is it the right answer, and as long as the true one?
Do the nods follow what is heard?
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from vidchat.data.media.read import Media, read_clip
from vidchat.dialogue import ChunkClock, Clip, Dialogue
from vidchat.playground.demo.answers import Acted
from vidchat.playground.demo.conversation import AnswerReader, Asked, questions
from vidchat.playground.demo.listener import dips, find_nods, nod_f1, nod_f1_shuffled, shut_share
from vidchat.playground.demo.people import TestPeople
from vidchat.playground.demo.pixels import HEAD, MouthReader, NodReader, crop
from vidchat.playground.people.script import Case
from vidchat.release import Release

Floats = NDArray[np.float64]

VOICES = 6
"""Voices in which the possible answers are spoken."""
CLOSE = 2
"""Chunks by which the length of an answer may differ from the true one's."""


@dataclass(frozen=True)
class Scores:
    """Scores of one system.

    Attributes:
        identity: Share of conversations whose face is nearest to their own reference.
        mouth: Mean correlation of mouth opening and loudness of the audio, over all answers.
        mouth_shuffled: The same with the audio of another answer.
        right: Share of right answers to first, second and third questions, and the number of such questions.
        topic: Share of answers with the right topic and any feeling.
        feeling: Share of answers with the right feeling and any topic.
        length: Share of answers whose length is right to two chunks.
        nods: F1 score of the listeners' nods against the ends of the phrases that they hear.
        nods_shuffled: The same against the phrase ends that others hear.
        shut: Share of frames in which listeners have their mouths shut.
        answers: Topic and feeling recognised in each answer of each conversation.
        nodded: Starts of the nods of each listener, in seconds.
    """

    identity: float
    mouth: float
    mouth_shuffled: float
    right: Mapping[int, tuple[float, int]]
    topic: float
    feeling: float
    length: float
    nods: float
    nods_shuffled: float
    shut: float
    answers: tuple[tuple[Case, ...], ...]
    nodded: tuple[tuple[float, ...], ...]


def percent(share: float, count: int) -> str:
    """Formats a share of `count` trials with its 95 % interval (Wilson's), such as "58 % (39-76)"."""
    low, high = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def nearest_face(frames: Tensor, references: Mapping[str, Tensor]) -> str:
    """Returns the speaker whose reference differs least from a clip, by RMS over the head at 24 x 24.

    Args:
        frames: (n, 3, H, W) uint8 frames of one clip; their mean is compared with each reference.
        references: (3, H, W) uint8 reference of each speaker.
    """
    face = crop(frames, HEAD, 24).mean(0)
    distance = {name: (face - crop(frame[None], HEAD, 24)[0]).square().mean() for name, frame in references.items()}
    return min(distance, key=lambda name: float(distance[name]))


def loudness(waveform: Tensor, frames: int) -> Floats:
    """Returns the root mean square (frames,) of a waveform (samples,) during each frame."""
    hop = len(waveform) // frames
    return waveform[: hop * frames].view(frames, hop).square().mean(1).sqrt().numpy().astype(np.float64)


def correlation(a: Floats, b: Floats) -> float:
    """Returns Pearson's correlation over the common length; 0 where one of the two is constant."""
    length = min(len(a), len(b))
    a, b = a[:length] - a[:length].mean(), b[:length] - b[:length].mean()
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale > 1e-9 else 0.0


def fit_readers(clips: Sequence[Clip], release: Release) -> tuple[MouthReader, NodReader]:
    """Returns readers fitted to rendered clips of people who speak and who listen."""
    clock = release.clock
    frames = [
        read_clip(clip, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate, audio=False).frames
        for clip in clips
    ]
    openings = [clip.truth["mouth"][: len(own)] for clip, own in zip(clips, frames, strict=True)]
    nods = [dips(clip.truth["nods"], len(own), clock.fps).tolist() for clip, own in zip(clips, frames, strict=True)]
    return MouthReader().fit(frames, openings), NodReader().fit(frames, nods)


class Measures:
    """Scores systems on the test dialogues.

    Args:
        people: Test dialogues.
        truth: The true clips.
        readers: Readers that are fitted to other people.
        clock: The clock of the clips.
    """

    def __init__(
        self, people: TestPeople, truth: Acted, readers: tuple[MouthReader, NodReader], clock: ChunkClock
    ) -> None:
        self.people, self.clock = people, clock
        self.mouths, self.nods = readers
        talks = zip(people.conversations, truth.answers, strict=True)
        self.references = {dialogue.answer.speaker: clips[0].frames[0] for dialogue, clips in talks}
        self.lengths = [_chunks(clip, clock) for clips in truth.answers for clip in clips]
        voices = [dialogue.answer.truth["voice"] for dialogue in people.conversations[:VOICES]]
        self.words = AnswerReader(voices, clock.sample_rate)
        self.ends = [[end for _, end in dialogue.turns[0].clip.truth["phrases"]] for dialogue in people.listening]

    def score(self, acted: Acted) -> Scores:
        """Returns the scores of one system."""
        asked = [list(questions(dialogue)) for dialogue in self.people.conversations]
        answers = tuple(
            tuple(self._hear(clip, one) for clip, one in zip(clips, own, strict=True))
            for clips, own in zip(acted.answers, asked, strict=True)
        )
        pairs = [
            (case, one) for own, ones in zip(answers, asked, strict=True) for case, one in zip(own, ones, strict=True)
        ]
        by_number: dict[int, list[bool]] = defaultdict(list)
        for case, one in pairs:
            by_number[one.number].append(case == one.case)
        clips = [clip for own in acted.answers for clip in own]
        openings = [self.mouths.read(clip.frames)[1:] for clip in clips]
        sounds = [loudness(clip.waveform, len(clip.frames) - 1) for clip in clips]
        faces = zip(self.people.conversations, acted.answers, strict=True)
        off = [abs(_chunks(clip, self.clock) - length) for clip, length in zip(clips, self.lengths, strict=True)]
        nodded = tuple(tuple(find_nods(self.nods.read(clip.frames), self.clock.fps)) for clip in acted.listening)
        return Scores(
            identity=float(np.mean([self._keeps_face(*pair) for pair in faces])),
            mouth=float(np.mean([correlation(a, b) for a, b in zip(openings, sounds, strict=True)])),
            mouth_shuffled=float(np.mean([correlation(a, sounds[i - 1]) for i, a in enumerate(openings)])),
            right={number: (float(np.mean(hits)), len(hits)) for number, hits in sorted(by_number.items())},
            topic=float(np.mean([case.topic == one.case.topic for case, one in pairs])),
            feeling=float(np.mean([case.expression == one.case.expression for case, one in pairs])),
            length=float(np.mean([chunks <= CLOSE for chunks in off])),
            nods=nod_f1(nodded, self.ends),
            nods_shuffled=nod_f1_shuffled(nodded, self.ends),
            shut=shut_share([self.mouths.read(clip.frames)[1:] for clip in acted.listening]),
            answers=answers,
            nodded=nodded,
        )

    def _hear(self, clip: Media, asked: Asked) -> Case:
        return self.words.read(clip.waveform.numpy(), asked.kind, asked.long)

    def _keeps_face(self, dialogue: Dialogue, answers: Sequence[Media]) -> bool:
        frames = torch.cat([clip.frames[1:] for clip in answers])
        return nearest_face(frames, self.references) == dialogue.answer.speaker


def _chunks(clip: Media, clock: ChunkClock) -> int:
    return clock.chunks(len(clip.frames))
