"""Three questions to an answer on the synthetic dyads, each with its chance and its ceiling.

Is it the face of the reference? Does the mouth follow the audio? Is it the right answer?
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

HEAD = (0.10, 0.85, 0.22, 0.78)  # top, bottom, left, right of the head in a frame
MOUTH = (0.52, 0.78, 0.33, 0.67)  # of the mouth, wherever the head sways


@dataclass(frozen=True)
class Scores:
    """Of one system, over all its answers.

    Attributes:
        identity: Share whose face is nearest to its own reference.
        mouth: Mean correlation of mouth opening and loudness.
        mouth_shuffled: The same with the audio of another answer.
        answer: Share that is nearest to the right answer.
        topic: Share whose topic is right, whatever the feeling.
        feeling: Share whose feeling is right, whatever the topic.
        psnr: Mean peak signal-to-noise ratio to the true answer, in dB.
        heard: Which answer each was nearest to.
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
    """A share of `count` trials with its 95 % interval (Wilson's), such as "58 % (39-76)"."""
    low, high = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"


def crop(frames: Tensor, box: tuple[float, float, float, float], size: int) -> Tensor:
    """The same part of every frame (n, 3, H, W), as (n, 3, size, size) in [0, 1]."""
    height, width = frames.shape[-2:]
    top, bottom, left, right = (
        round(share * side) for share, side in zip(box, (height, height, width, width), strict=True)
    )
    part = frames[..., top:bottom, left:right].float() / 255
    return F.interpolate(part, (size, size), mode="area")


def nearest_face(frames: Tensor, references: Mapping[str, Tensor]) -> str:
    """Whose face it is: the speaker whose reference differs least, by RMS over the head at 24 x 24.

    Args:
        frames: (n, 3, H, W) uint8 of one clip; their mean is compared, so no single frame decides.
        references: (3, H, W) uint8 by speaker.
    """
    face = crop(frames, HEAD, 24).mean(0)
    distance = {name: (face - crop(frame[None], HEAD, 24)[0]).square().mean() for name, frame in references.items()}
    return min(distance, key=lambda name: float(distance[name]))


class MouthReader:
    """Reads the opening of a drawn mouth from pixels: ridge regression, fitted to the renderer's exact truth."""

    def __init__(self, penalty: float = 10.0) -> None:
        self.penalty = penalty
        self.weights = torch.zeros(0)

    @staticmethod
    def _features(frames: Tensor) -> Tensor:
        """Differences from the first frame around the mouth, with a constant: (n, D)."""
        mouth = crop(frames, MOUTH, 12).flatten(1)
        change = mouth - mouth[:1]
        return torch.cat([change, change.abs(), torch.ones(len(mouth), 1)], dim=1)

    def fit(self, clips: Sequence[Tensor], openings: Sequence[Sequence[float]]) -> MouthReader:
        """Fit to clips (n, 3, H, W), each from its resting first frame on, and their true openings (n,)."""
        x = torch.cat([self._features(clip) for clip in clips]).double()
        y = torch.cat([torch.tensor(opening) for opening in openings]).double()
        self.weights = torch.linalg.solve(x.T @ x + self.penalty * torch.eye(x.shape[1]).double(), x.T @ y).float()
        return self

    def read(self, frames: Tensor) -> Floats:
        """(n,) opening of each frame."""
        return (self._features(frames) @ self.weights).numpy().astype(np.float64)


def loudness(waveform: Tensor, frames: int) -> Floats:
    """(n,) root mean square of the audio during each frame."""
    each = len(waveform) // frames
    return waveform[: each * frames].view(frames, each).square().mean(1).sqrt().numpy().astype(np.float64)


def correlation(a: Floats, b: Floats) -> float:
    """Pearson's, 0 where one of the two does not change."""
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
    """Score one system's answers.

    Args:
        answers: What the system gave, each from frame 1 on, beside its reference.
        truths: The true answers, likewise.
        references: The first frames of the true answers, by speaker.
        speakers: Who answers.
        right: What should have been understood.
        spoken: Every sentence that could be said, as `cepstra` of several voices.
        reader: Fitted.
    """
    openings, waveforms, heard, psnr = [], [], [], []
    for media, truth, speaker in zip(answers, truths, speakers, strict=True):
        frames = torch.cat([references[speaker][None], media.frames])
        openings.append(reader.read(frames)[1:])
        waveforms.append(loudness(media.waveform, len(media.frames)))
        heard.append(nearest_sentence(media.waveform.numpy(), spoken, media.sample_rate))
        length = min(len(media.frames), len(truth.frames))
        error = (media.frames[:length].float() - truth.frames[:length].float()).square().mean()
        psnr.append(float(10 * torch.log10(255**2 / error.clamp(min=1e-2))))
    understood = {case.answer: case for case in cases()}
    said = [understood[text] for text in heard]
    count = len(answers)
    return Scores(
        identity=sum(nearest_face(m.frames, references) == s for m, s in zip(answers, speakers, strict=True)) / count,
        mouth=float(np.mean([correlation(a, b) for a, b in zip(openings, waveforms, strict=True)])),
        mouth_shuffled=float(np.mean([correlation(a, waveforms[i - 1]) for i, a in enumerate(openings)])),
        answer=sum(a == b for a, b in zip(said, right, strict=True)) / count,
        topic=sum(a.topic == b.topic for a, b in zip(said, right, strict=True)) / count,
        feeling=sum(a.expression == b.expression for a, b in zip(said, right, strict=True)) / count,
        psnr=float(np.mean(psnr)),
        heard=tuple(heard),
    )
