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
from torch.nn import functional as F

from vidchat.bench.spoken_distance import nearest_sentence
from vidchat.data.media.read import Media
from vidchat.playground.people.script import Case, cases

Floats = NDArray[np.float64]

HEAD = (0.10, 0.85, 0.22, 0.78)  # top, bottom, left and right edge of the head, as shares of the frame
MOUTH = (0.52, 0.78, 0.33, 0.67)  # the same of the mouth, at any sway of the head


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


def crop(frames: Tensor, box: tuple[float, float, float, float], size: int) -> Tensor:
    """Crops every frame (n, 3, H, W) to a box and resizes it: (n, 3, size, size) in [0, 1]."""
    height, width = frames.shape[-2:]
    top, bottom, left, right = (
        round(share * side) for share, side in zip(box, (height, height, width, width), strict=True)
    )
    region = frames[..., top:bottom, left:right].float() / 255
    return F.interpolate(region, (size, size), mode="area")


def nearest_face(frames: Tensor, references: Mapping[str, Tensor]) -> str:
    """Returns the speaker whose reference differs least from a clip, by RMS over the head at 24 x 24.

    Args:
        frames: (n, 3, H, W) uint8 frames of one clip; their mean is compared with each reference.
        references: (3, H, W) uint8 reference of each speaker.
    """
    face = crop(frames, HEAD, 24).mean(0)
    distance = {name: (face - crop(frame[None], HEAD, 24)[0]).square().mean() for name, frame in references.items()}
    return min(distance, key=lambda name: float(distance[name]))


class MouthReader:
    """Reads the opening of a drawn mouth from pixels, by ridge regression fitted to the renderer's exact truth."""

    def __init__(self, penalty: float = 10.0) -> None:
        self.penalty = penalty
        self.weights = torch.zeros(0)

    @staticmethod
    def _features(frames: Tensor) -> Tensor:
        """Returns (n, D) differences from the first frame around the mouth, with a constant."""
        mouth = crop(frames, MOUTH, 12).flatten(1)
        change = mouth - mouth[:1]
        return torch.cat([change, change.abs(), torch.ones(len(mouth), 1)], dim=1)

    def fit(self, clips: Sequence[Tensor], openings: Sequence[Sequence[float]]) -> MouthReader:
        """Fits to clips (n, 3, H, W) that begin with the mouth at rest, and to their true openings (n,)."""
        x = torch.cat([self._features(clip) for clip in clips]).double()
        y = torch.cat([torch.tensor(opening) for opening in openings]).double()
        self.weights = torch.linalg.solve(x.T @ x + self.penalty * torch.eye(x.shape[1]).double(), x.T @ y).float()
        return self

    def read(self, frames: Tensor) -> Floats:
        """Returns the mouth opening (n,) in frames (n, 3, H, W)."""
        return (self._features(frames) @ self.weights).numpy().astype(np.float64)


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
