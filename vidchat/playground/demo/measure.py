"""Scores of answers on rendered dyads: the face, the mouth and the words.

Is the face that of the reference? Does the mouth follow the audio? Is it the right answer?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from vidchat.bench.spoken_distance import nearest_sentence
from vidchat.data.media.read import Media
from vidchat.playground.demo.pixels import HEAD, MouthReader, crop
from vidchat.playground.people.script import Case, cases

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of one system over all its answers.

    Attributes:
        identity: Share of answers whose face is nearest to their own reference.
        mouth: Mean correlation of mouth opening and loudness of the audio.
        mouth_shuffled: The same with the audio of another answer.
        answer: Share of answers nearest to the right one.
        topic: Share of answers with the right topic and any feeling.
        feeling: Share of answers with the right feeling and any topic.
        psnr: Mean peak signal-to-noise ratio to the true answer, in dB.
        heard: Words of the nearest possible answer, for each answer.
    """

    identity: float
    mouth: float
    mouth_shuffled: float
    answer: float
    topic: float
    feeling: float
    psnr: float
    heard: tuple[str, ...]


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


def score(
    answers: Sequence[Media],
    truths: Sequence[Media],
    references: Mapping[str, Tensor],
    speakers: Sequence[str],
    right: Sequence[Case],
    spoken: Mapping[str, Sequence[Floats]],
    reader: MouthReader,
) -> Scores:
    """Returns the scores of one system's answers.

    Args:
        answers: The system's answers, each from frame 1 on, without its reference.
        truths: True answers, likewise from frame 1 on.
        references: (3, H, W) uint8 first frame of the true answers of each speaker.
        speakers: Speaker of each answer.
        right: Right topic and feeling of each answer.
        spoken: `cepstra` of every possible sentence in several voices.
        reader: A fitted mouth reader.
    """
    openings, loudnesses, heard, psnr = [], [], [], []
    for media, truth, speaker in zip(answers, truths, speakers, strict=True):
        frames = torch.cat([references[speaker][None], media.frames])
        openings.append(reader.read(frames)[1:])
        loudnesses.append(loudness(media.waveform, len(media.frames)))
        heard.append(nearest_sentence(media.waveform.numpy(), spoken, media.sample_rate))
        length = min(len(media.frames), len(truth.frames))
        error = (media.frames[:length].float() - truth.frames[:length].float()).square().mean()
        psnr.append(float(10 * torch.log10(255**2 / error.clamp(min=1e-2))))
    case_of = {case.answer: case for case in cases()}
    said = [case_of[text] for text in heard]
    count = len(answers)
    return Scores(
        identity=sum(nearest_face(m.frames, references) == s for m, s in zip(answers, speakers, strict=True)) / count,
        mouth=float(np.mean([correlation(a, b) for a, b in zip(openings, loudnesses, strict=True)])),
        mouth_shuffled=float(np.mean([correlation(a, loudnesses[i - 1]) for i, a in enumerate(openings)])),
        answer=sum(a == b for a, b in zip(said, right, strict=True)) / count,
        topic=sum(a.topic == b.topic for a, b in zip(said, right, strict=True)) / count,
        feeling=sum(a.expression == b.expression for a, b in zip(said, right, strict=True)) / count,
        psnr=float(np.mean(psnr)),
        heard=tuple(heard),
    )
