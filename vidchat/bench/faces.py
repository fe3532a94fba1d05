"""Where the face is: a guess (the middle, where people who talk to a camera are), or a small detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.metric import BackendError, need_file
from vidchat.bench.protocol import file_hash
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

CENTRE = (0.22, 0.10, 0.78, 0.85)
"""Left, top, right, bottom of the guessed face, as shares of the frame."""
MOUTH = (0.20, 0.58, 0.80, 0.93)
"""Of the mouth, as shares of the face."""
STEP = 5  # frames that share one look, at most; between looks, boxes are interpolated
SURE = 0.7  # of a detection


@dataclass(frozen=True)
class Faces:
    """The face in every frame of a clip.

    Attributes:
        boxes: (N, 4) left, top, right, bottom in pixels.
        found: (N,) whether the look that the frame shares found a face; all true for the guess.
    """

    boxes: Floats
    found: NDArray[np.bool_]


def shared_looks(length: int) -> list[NDArray[np.int64]]:
    """Splits a clip into runs of at most `STEP` frames, as equal as can be; one look serves each run.

    Runs and not every fifth frame: every frame belongs to exactly one look, whatever the clip's length, so that shares
    of frames with a face do not depend on how many frames a clip has.
    """
    return np.array_split(np.arange(length), -(-length // STEP))


def looked_at(length: int) -> NDArray[np.int64]:
    """The middle frame of each run of `shared_looks`: where faces are looked for and compared."""
    return np.array([run[len(run) // 2] for run in shared_looks(length)])


class FaceFinder(Protocol):
    """Finds the face in every frame of a clip."""

    def __call__(self, media: Media) -> Faces: ...

    def spec(self) -> Mapping[str, object]:
        """What a number depends on."""
        ...


class Centred:
    """Finds a face in the middle of every frame: for portraits that are framed alike."""

    def __call__(self, media: Media) -> Faces:
        height, width = media.frames.shape[-2:]
        box = np.array(CENTRE) * np.array([width, height, width, height])
        return Faces(np.tile(box, (len(media.frames), 1)), np.ones(len(media.frames), bool))

    def spec(self) -> Mapping[str, object]:
        return {"face": "centre " + ",".join(f"{share:g}" for share in CENTRE)}


class Detected:
    """The Ultra-Light RFB-320 face detector (Linzaer, MIT) through onnxruntime, on one of every five frames.

    The most certain face counts. Where none is found the nearest frame's box holds, and the frame counts as one
    without a face; where none is found in the whole clip, the guess holds.

    Args:
        path: `version-RFB-320.onnx`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = need_file(path, "the RFB-320 face detector (version-RFB-320.onnx)")
        self._session = onnx_session(self.path)
        self._last: tuple[Media, Faces] | None = None

    def __call__(self, media: Media) -> Faces:
        if self._last is None or self._last[0] is not media:  # measures that follow each other ask for the same clip
            self._last = (media, self._find(media))
        return self._last[1]

    def spec(self) -> Mapping[str, object]:
        return {"face": f"RFB-320 {file_hash(self.path)} in the middle of every {STEP} frames or fewer"}

    def _find(self, media: Media) -> Faces:
        length = len(media.frames)
        at = looked_at(length)
        seen = [self._best(media.frames[i]) for i in at]
        sure = [box for box in seen if box is not None]
        if not sure:
            return Faces(Centred()(media).boxes, np.zeros(length, bool))
        where = np.array([i for i, box in zip(at, seen, strict=True) if box is not None])
        steady = median_filter(np.stack(sure), size=(min(5, len(sure)), 1), mode="nearest")
        boxes = np.stack([np.interp(np.arange(length), where, side) for side in steady.T], axis=1)
        runs = zip(shared_looks(length), seen, strict=True)
        found = np.concatenate([np.full(len(run), box is not None) for run, box in runs])
        return Faces(boxes, found)

    def _best(self, frame: Tensor) -> Floats | None:
        height, width = frame.shape[-2:]
        small = F.interpolate(frame[None].float(), (240, 320), mode="bilinear", antialias=True)
        scores, boxes = self._session.run(None, {self._session.get_inputs()[0].name: ((small - 127) / 128).numpy()})
        best = int(scores[0, :, 1].argmax())
        if scores[0, best, 1] < SURE:
            return None
        return boxes[0, best].astype(np.float64) * np.array([width, height, width, height])


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on one CPU thread, or an error that says how to install it."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("onnxruntime is not installed; pip install 'vidchat[bench]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # warnings about how a published file was exported
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of kinds that onnxruntime alone knows
        why = str(error).splitlines()[0][:200]
        raise BackendError(f"{path}: is no ONNX file that can be run ({why}); download it again") from error


def part_of(boxes: Floats, part: tuple[float, float, float, float]) -> Floats:
    """Boxes (N, 4) of a part of the faces, given as shares (left, top, right, bottom) of the face."""
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    shares = (left + part[0] * width, top + part[1] * height, left + part[2] * width, top + part[3] * height)
    return np.stack(shares, axis=1)


def crops(frames: Tensor, boxes: Floats, size: tuple[int, int]) -> Tensor:
    """(N, 3, h, w) in [0, 1]: the boxes' contents to sub-pixel places, averaged down, edges repeated outside.

    Args:
        frames: (N, 3, H, W) uint8.
        boxes: (N, 4) in pixels.
        size: (h, w).
    """
    height, width = _extent(boxes)
    finer = [max(1, min(4, round(whole / part))) for whole, part in zip((height, width), size, strict=True)]
    fine = (size[0] * finer[0], size[1] * finer[1])
    parts = [
        _sample(some, where, fine)
        for some, where in zip(frames.split(32), torch.from_numpy(boxes).float().split(32), strict=True)
    ]
    return F.adaptive_avg_pool2d(torch.cat(parts), size)


def _sample(frames: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 3, h, w): the boxes' contents, bilinear. Only what lies around them is turned to floats, which is slow."""
    height, width = frames.shape[-2:]
    x0, y0 = (max(0, int(boxes[:, side].min()) - 2) for side in (0, 1))
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    x1, y1 = max(x0 + 1, int(boxes[:, 2].max()) + 3), max(y0 + 1, int(boxes[:, 3].max()) + 3)
    around = frames[..., y0:y1, x0:x1].float() / 255
    left, top, right, bottom = boxes.T
    y = top[:, None] + (bottom - top)[:, None] * (torch.arange(size[0]) + 0.5) / size[0] - y0
    x = left[:, None] + (right - left)[:, None] * (torch.arange(size[1]) + 0.5) / size[1] - x0
    columns = (2 * x / around.shape[-1] - 1)[:, None, :].expand(-1, size[0], -1)
    rows = (2 * y / around.shape[-2] - 1)[:, :, None].expand(-1, -1, size[1])
    grid = torch.stack([columns, rows], dim=-1)
    return F.grid_sample(around, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _extent(boxes: Floats) -> tuple[float, float]:
    """Median height and width."""
    return float(np.median(boxes[:, 3] - boxes[:, 1])), float(np.median(boxes[:, 2] - boxes[:, 0]))
