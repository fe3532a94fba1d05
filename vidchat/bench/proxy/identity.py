"""Proxy of ArcFace: similarity of the face region to the reference's, in colour and coarse shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.faces import STEP, FaceFinder, crops, detection_frames
from vidchat.bench.metric import Column, Features, Metric, cosine
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

SIDE = 12  # the face is averaged down to SIDE x SIDE, so that motion of the lips hardly counts
IDENTITY = (
    Column("ArcFace", "higher", worst=-1.0),
    Column("face found", "higher", worst=0.0),
    Column("identity drift", "lower", worst=4.0),  # the changes of two cosines, each at most 2
)


class FaceAppearance(Metric):
    """Cosine similarity of each face, a coarse colour image minus middle grey, to the reference's; mean over frames.

    It tells rendered people apart, and filmed people in different clothes and light. Unlike ArcFace it depends on light
    and pose. A frame without a face scores 0.

    Args:
        finder: Face finder.
    """

    dimension = "identity"
    columns = IDENTITY
    doubt = (
        "Clothes, light and pose weigh as much as the face: it tells two filmed people apart, not two similar faces."
    )
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
        indices = detection_frames(len(media.frames))
        face = crops(media.frames[indices], faces.boxes[indices], (SIDE, SIDE)).flatten(1).numpy()
        contrast = np.linalg.norm(face - face.mean(1, keepdims=True), axis=1) / np.sqrt(face.shape[1])
        found = faces.found[indices] & (contrast > 0.02)  # a blank frame has no face
        return {"faces": (face - 0.5).astype(np.float32), "found": found}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return compare_faces(generated, truth, reference)


def compare_faces(generated: Features, truth: Features, reference: Features) -> dict[str, float]:
    """Computes the cosine similarity to the reference, the share of frames with a face, and the drift.

    Drift is the difference from the truth in the change of the cosine from the first quarter to the last, since real
    people turn too; `nan` if one of the two clips has no face.

    Args:
        generated: Features of the generated clip: `faces` (n, D) and `found` (n,), in order of time.
        truth: Features of the true answer.
        reference: Features of the reference, one frame.
    """
    similarity = _similarity(generated, reference)
    drift = abs(_change(similarity) - _change(_similarity(truth, reference)))
    return {
        "ArcFace": float(similarity.mean()),
        "face found": float(generated["found"].mean()),
        "identity drift": drift if generated["found"].any() and truth["found"].any() else float("nan"),
    }


def _similarity(clip: Features, reference: Features) -> Floats:
    """Returns the cosine similarity to the reference, (n,); 0 where no face was found."""
    return np.where(clip["found"].astype(bool), cosine(clip["faces"], reference["faces"][0]), 0.0)


def _change(similarity: Floats) -> float:
    quarter = max(1, len(similarity) // 4)
    return float(similarity[-quarter:].mean() - similarity[:quarter].mean())
