"""A stand-in for ArcFace: how much the face region looks like the reference's, in colour and coarse shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.faces import STEP, FaceFinder, crops, looked_at
from vidchat.bench.metric import Column, Features, Metric, cosine
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

SIDE = 12  # the face is averaged down to SIDE x SIDE, so that motion of the lips hardly counts


IDENTITY = (
    Column("ArcFace", "higher", worst=-1.0),
    Column("face found", "higher", worst=0.0),
    Column("identity drift", "lower", worst=4.0),  # the change of a cosine is at most 2, the truth's too
)


class FaceLooks(Metric):
    """Cosine between each face, as a coarse colour frame less middle grey, and the reference's; mean over frames.

    It tells drawn people apart, and filmed ones in different clothes and light. It is fooled by light and by pose, as
    ArcFace is not. A frame without a face scores 0.

    Args:
        finder: Where the face is.
    """

    dimension = "identity"
    columns = IDENTITY
    doubt = "Clothes, light and pose weigh as much as the face: it tells two filmed people apart, not two like faces."

    needs_reference = True

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"cosine of {SIDE}x{SIDE} colour faces",
            **self.finder.spec(),
            "frames": f"the middle of every {STEP} or fewer",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        faces = self.finder(media)
        at = looked_at(len(media.frames))
        face = crops(media.frames[at], faces.boxes[at], (SIDE, SIDE)).flatten(1).numpy()
        contrast = np.linalg.norm(face - face.mean(1, keepdims=True), axis=1) / np.sqrt(face.shape[1])
        found = faces.found[at] & (contrast > 0.02)  # a blank frame holds no face
        return {"faces": (face - 0.5).astype(np.float32), "found": found}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return compare_faces(made, true, reference)


def compare_faces(made: Features, true: Features, reference: Features) -> dict[str, float]:
    """Cosine to the reference, share of frames with a face, and drift.

    Drift is how far the change of the cosine from first to last quarter is from the truth's own: people turn. `nan`
    where one of the two clips has no face that could drift.

    Args:
        made: Features of the generated clip, `faces` (n, D) and `found` (n,), in order of time.
        true: Features of the true answer.
        reference: Features of the reference, one frame.
    """
    alike = _likeness(made, reference)
    drift = abs(_change(alike) - _change(_likeness(true, reference)))
    return {
        "ArcFace": float(alike.mean()),
        "face found": float(made["found"].mean()),
        "identity drift": drift if made["found"].any() and true["found"].any() else float("nan"),
    }


def _likeness(clip: Features, reference: Features) -> Floats:
    """(n,) cosine to the reference; 0 where no face was found."""
    return np.where(clip["found"].astype(bool), cosine(clip["faces"], reference["faces"][0]), 0.0)


def _change(alike: Floats) -> float:
    quarter = max(1, len(alike) // 4)
    return float(alike[-quarter:].mean() - alike[:quarter].mean())
