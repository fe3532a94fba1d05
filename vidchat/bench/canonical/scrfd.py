"""The SCRFD face detector of insightface's packs (`det_10g.onnx`): boxes and five landmarks (Guo et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from vidchat.bench.faces import onnx_session
from vidchat.bench.metric import BackendError, need_file
from vidchat.bench.protocol import file_hash

Floats = NDArray[np.float64]

SIDE, STRIDES, ANCHORS = 640, (8, 16, 32), 2
MIN_CONFIDENCE = 0.5


class Scrfd:
    """Finds the five landmarks of the face with the highest confidence in a frame.

    Args:
        path: SCRFD model with landmarks, such as `det_10g.onnx`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = need_file(path, "an SCRFD detector with landmarks, det_10g.onnx of insightface's buffalo_l")
        self.session = onnx_session(self.path)
        if len(self.session.get_outputs()) != 3 * len(STRIDES):
            outputs = len(self.session.get_outputs())
            raise BackendError(f"{path}: has {outputs} outputs, where SCRFD with landmarks has 9; give det_10g.onnx")

    def spec(self) -> Mapping[str, object]:
        return {"detector": f"SCRFD {file_hash(self.path)} at {SIDE}, sure from {MIN_CONFIDENCE}"}

    def landmarks(self, frame: torch.Tensor) -> Floats | None:
        """Returns x, y of eyes, nose and corners of the mouth, (5, 2), in a frame (3, H, W) uint8, or `None`."""
        height, width = frame.shape[-2:]
        scale = min(SIDE / height, SIDE / width)
        size = (round(height * scale), round(width * scale))
        small = F.interpolate(frame[None].float(), size, mode="bilinear", antialias=True)
        padded = F.pad(small, (0, SIDE - size[1], 0, SIDE - size[0]))
        inputs = ((padded - 127.5) / 128).numpy()  # R, G, B, as insightface swaps OpenCV's order
        outputs = self.session.run(None, {self.session.get_inputs()[0].name: inputs})
        best: tuple[float, Floats] | None = None
        for level, stride in enumerate(STRIDES):
            scores = np.asarray(outputs[level]).reshape(-1)
            anchor = int(scores.argmax())
            if scores[anchor] >= MIN_CONFIDENCE and (best is None or scores[anchor] > best[0]):
                offsets = np.asarray(outputs[level + 2 * len(STRIDES)]).reshape(-1, 5, 2)[anchor] * stride
                cell = anchor // ANCHORS
                centre = np.array([cell % (SIDE // stride), cell // (SIDE // stride)]) * stride
                best = (float(scores[anchor]), (centre + offsets) / scale)
        return None if best is None else best[1]
