"""Finds faces: by a fixed box in the middle of the frame, or by a small detector."""

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
"""Left, top, right, bottom of the fixed face box, as shares of the frame."""
MOUTH = (0.20, 0.58, 0.80, 0.93)
"""Left, top, right, bottom of the mouth, as shares of the face box."""
STEP = 5  # largest number of frames that share one detection; boxes in between are interpolated
MIN_CONFIDENCE = 0.7  # below this, a detection does not count


@dataclass(frozen=True)
class Faces:
    """The face in every frame of a clip.

    Attributes:
        boxes: Left, top, right, bottom in pixels, (N, 4).
        found: Whether the detection that the frame shares found a face, (N,); all true for the fixed box.
    """

    boxes: Floats
    found: NDArray[np.bool_]


def detection_runs(length: int) -> list[NDArray[np.int64]]:
    """Splits the frame indices of a clip into runs of at most `STEP`, of nearly equal length, that share one detection.

    Every frame belongs to exactly one detection, so the share of frames with a face does not depend on the length of
    the clip, as it would if every fifth frame were taken.
    """
    return np.array_split(np.arange(length), -(-length // STEP))


def detection_frames(length: int) -> NDArray[np.int64]:
    """Returns the indices of the frames in which faces are detected and compared: the middle of each run."""
    return np.array([run[len(run) // 2] for run in detection_runs(length)])


class FaceFinder(Protocol):
    """Finds the face in every frame of a clip."""

    def __call__(self, media: Media) -> Faces:
        """Returns the face boxes of a clip."""
        ...

    def spec(self) -> Mapping[str, object]:
        """Returns everything that the boxes depend on, as parts of a protocol string."""
        ...


class CentredFace:
    """Takes a fixed box in the middle of every frame as the face, for portraits that are framed alike."""

    def __call__(self, media: Media) -> Faces:
        height, width = media.frames.shape[-2:]
        box = np.array(CENTRE) * np.array([width, height, width, height])
        return Faces(np.tile(box, (len(media.frames), 1)), np.ones(len(media.frames), bool))

    def spec(self) -> Mapping[str, object]:
        return {"face": "centre " + ",".join(f"{share:g}" for share in CENTRE)}


class FaceDetector:
    """The Ultra-Light RFB-320 face detector (Linzaer, MIT) through onnxruntime, on one of every five frames.

    The face with the highest confidence counts. A frame in which none is found takes the box of the nearest frame, and
    counts as one without a face; a clip in which none is found takes the fixed box.

    Args:
        path: File `version-RFB-320.onnx`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = need_file(path, "the RFB-320 face detector (version-RFB-320.onnx)")
        self._session = onnx_session(self.path)
        self._last: tuple[Media, Faces] | None = None

    def __call__(self, media: Media) -> Faces:
        if self._last is None or self._last[0] is not media:  # several metrics ask for the same clip
            self._last = (media, self._find(media))
        return self._last[1]

    def spec(self) -> Mapping[str, object]:
        return {"face": f"RFB-320 {file_hash(self.path)} in the middle of every {STEP} frames or fewer"}

    def _find(self, media: Media) -> Faces:
        length = len(media.frames)
        indices = detection_frames(length)
        detections = [self._best(media.frames[i]) for i in indices]
        detected = [box for box in detections if box is not None]
        if not detected:
            return Faces(CentredFace()(media).boxes, np.zeros(length, bool))
        times = np.array([i for i, box in zip(indices, detections, strict=True) if box is not None])
        smooth = median_filter(np.stack(detected), size=(min(5, len(detected)), 1), mode="nearest")
        boxes = np.stack([np.interp(np.arange(length), times, side) for side in smooth.T], axis=1)
        runs = zip(detection_runs(length), detections, strict=True)
        found = np.concatenate([np.full(len(run), box is not None) for run, box in runs])
        return Faces(boxes, found)

    def _best(self, frame: Tensor) -> Floats | None:
        height, width = frame.shape[-2:]
        small = F.interpolate(frame[None].float(), (240, 320), mode="bilinear", antialias=True)
        scores, boxes = self._session.run(None, {self._session.get_inputs()[0].name: ((small - 127) / 128).numpy()})
        best = int(scores[0, :, 1].argmax())
        if scores[0, best, 1] < MIN_CONFIDENCE:
            return None
        return boxes[0, best].astype(np.float64) * np.array([width, height, width, height])


def onnx_session(path: Path) -> Any:
    """Opens an ONNX file with onnxruntime on one CPU thread; raises `BackendError`."""
    try:
        import onnxruntime
    except ImportError:
        raise BackendError("onnxruntime is not installed; pip install 'vidchat[bench]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides warnings about how a published file was exported
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exception classes of its own
        why = str(error).splitlines()[0][:200]
        raise BackendError(f"{path}: is not an ONNX file that can be run ({why}); download it again") from error


def region_boxes(boxes: Floats, region: tuple[float, float, float, float]) -> Floats:
    """Returns boxes (N, 4) of a region of the faces, given as shares (left, top, right, bottom) of the face boxes."""
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    shares = (left + region[0] * width, top + region[1] * height, left + region[2] * width, top + region[3] * height)
    return np.stack(shares, axis=1)


def crops(frames: Tensor, boxes: Floats, size: tuple[int, int]) -> Tensor:
    """Crops one box from each frame at sub-pixel positions, and averages it down; outside the frame, edges repeat.

    Args:
        frames: Frames, (N, 3, H, W) uint8.
        boxes: Boxes in pixels, (N, 4).
        size: Size (h, w) of the crops.

    Returns:
        (N, 3, h, w) in [0, 1].
    """
    height, width = _extent(boxes)
    finer = [max(1, min(4, round(extent / side))) for extent, side in zip((height, width), size, strict=True)]
    fine = (size[0] * finer[0], size[1] * finer[1])
    parts = [
        _sample(chunk, chunk_boxes, fine)
        for chunk, chunk_boxes in zip(frames.split(32), torch.from_numpy(boxes).float().split(32), strict=True)
    ]
    return F.adaptive_avg_pool2d(torch.cat(parts), size)


def _sample(frames: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Samples the boxes bilinearly, (N, 3, h, w). Only the region around them is converted to floats, which is slow."""
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
    """Returns the median height and width of the boxes."""
    return float(np.median(boxes[:, 3] - boxes[:, 1])), float(np.median(boxes[:, 2] - boxes[:, 0]))
