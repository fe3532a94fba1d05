"""A stand-in for the 64 expression coefficients of Deep3DFaceRecon: coarse shapes of mouth, eyes and brows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from vidchat.bench.faces import EYES, MOUTH, FaceFinder, crops, part_of
from vidchat.bench.measure import Column, Features, Measure
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media import Media

SIZE = (16, 24)  # of a part's crop
KEPT = (4, 6)  # of its cosine coefficients, lowest first; the mean is left out
STEP = 2


class ExpressionShapes(Measure):
    """Fréchet distance over how mouth and eyes differ from the clip's first picture; and their difference by pair.

    A part is its low cosine coefficients after contrast is evened out; subtracting the first picture's takes who it is
    out. The set's distance does not see who smiles, only how many; `expression` sees it, in units of the part's
    own contrast.

    Args:
        finder: Where the face is.
    """

    dimension = "emotion"
    columns = (Column("emotion FID", "lower", "frechet"), Column("expression", "lower"))

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"{KEPT[0]}x{KEPT[1]} cosine coefficients of mouth and eyes, less the first picture's",
            **self.finder.spec(),
            "frames": f"every {STEP}th",
            "libraries": versions("torch", "scipy"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        boxes = self.finder(media).boxes[::STEP]
        parts = [crops(media.pictures[::STEP], part_of(boxes, part), SIZE).mean(1).numpy() for part in (MOUTH, EYES)]
        shapes = np.concatenate([_shape(part) for part in parts], axis=1)
        return {"rows": (shapes - shapes[:1]).astype(np.float32)}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        length = min(len(made["rows"]), len(true["rows"]))
        later = slice(length // 2, length)  # a feeling takes time to come
        difference = made["rows"][later].mean(0) - true["rows"][later].mean(0)
        return {"expression": float(np.linalg.norm(difference))}


def _shape(grey: NDArray) -> NDArray:
    """(N, D) low cosine coefficients of (N, h, w)."""
    level = grey - grey.mean((1, 2), keepdims=True)
    level = level / max(float(level.std()), 0.02)
    spectrum = dctn(level, axes=(1, 2), norm="ortho")[:, : KEPT[0], : KEPT[1]] / np.sqrt(grey[0].size)
    return spectrum.reshape(len(grey), -1)[:, 1:]
