"""Identity by ArcFace (Deng et al. 2019) as ONNX, on faces aligned by five landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.canonical.scrfd import Scrfd
from vidchat.bench.faces import STEP, detection_frames, onnx_session
from vidchat.bench.metric import Features, Metric, need_file
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import file_hash, versions
from vidchat.bench.proxy.identity import IDENTITY, compare_faces
from vidchat.data.media.read import Media

SIDE = 112
# Positions of the eyes, the nose and the corners of the mouth in ArcFace's 112 x 112 input.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


class ArcFace(Metric):
    """Cosine similarity of each face to the reference's; mean over frames, where a frame without a face counts 0.

    Args:
        path: Recognition model, such as `w600k_r50.onnx` or `glintr100.onnx`.
        detector: SCRFD model that finds landmarks.
    """

    dimension = "identity"
    columns = IDENTITY
    proxy = False
    needs_reference = True

    def __init__(self, path: Path | str, detector: Path | str) -> None:
        self.path = need_file(path, "an ArcFace model, w600k_r50.onnx of insightface's buffalo_l")
        self.session = onnx_session(self.path)
        self.detector = Scrfd(detector)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "ArcFace ONNX, cosine",
            "weights": file_hash(self.path),
            **self.detector.spec(),
            "frames": f"the middle of every {STEP} or fewer",
            "libraries": versions("onnxruntime", "torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        found, faces = [], []
        for frame in media.frames[detection_frames(len(media.frames))]:
            landmarks = self.detector.landmarks(frame)
            found.append(landmarks is not None)
            faces.append(torch.zeros(3, SIDE, SIDE) if landmarks is None else aligned(frame, landmarks))
        inputs = ((torch.stack(faces) - 127.5) / 127.5).numpy()
        name = self.session.get_inputs()[0].name
        embeddings = np.concatenate([self.session.run(None, {name: face[None]})[0] for face in inputs])
        return {"faces": embeddings.astype(np.float32), "found": np.array(found)}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return compare_faces(generated, truth, reference)


def aligned(frame: Tensor, landmarks: NDArray[np.float64]) -> Tensor:
    """Rotates, scales and shifts a frame (3, H, W) so that its landmarks (5, 2) fit the template.

    Returns:
        (3, 112, 112) in [0, 255].
    """
    to_image = similarity(TEMPLATE, landmarks)
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    positions = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_image.T
    height, width = frame.shape[-2:]
    grid = torch.from_numpy((positions + 0.5) / np.array([width, height]) * 2 - 1).float()
    return F.grid_sample(frame[None].float(), grid[None], padding_mode="zeros", align_corners=False)[0]


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fits rotation, scale and shift, (2, 3), that map points (n, 2) to others (n, 2) (Umeyama 1991)."""
    centre, target_centre = source.mean(0), target.mean(0)
    u, stretch, vt = np.linalg.svd((target - target_centre).T @ (source - centre) / len(source))
    mirror = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(mirror) @ vt
    scale = (stretch * mirror).sum() / ((source - centre) ** 2).sum(1).mean()
    return np.column_stack([scale * rotation, target_centre - scale * rotation @ centre])
