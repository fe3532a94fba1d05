"""Proxy of SyncNet: correlates mouth motion with loudness, over lags."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.clips import is_silent
from vidchat.bench.faces import MOUTH, FaceFinder, crops, region_boxes
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

MAX_LAG = 15  # frames, as SyncNet's `vshift`
SIZE = (32, 48)  # of the mouth crop
PHRASE = 12.0  # frames; slower changes tell whether somebody speaks, not what
QUIET = 1e-3  # added to the root mean square, so that lower levels make no difference


class MouthAndLoudness(Metric):
    """Rank correlation of the motion of the mouth region and the loudness, at lags of -15 ... 15 frames.

    It is the mean of two correlations: of both signals as they are, which separates speech from silence, and of both
    without changes slower than half a second, which separates syllables.

    `Sync r` is the correlation at lag 0, which falls as the audio is shifted. `Sync-C` is the largest correlation minus
    the median; `Sync-D` is one minus the largest; `offset` is the distance of the largest from lag 0, in frames. The
    last three are defined as SyncNet's, which does not punish an offset either. Ranks, and the compensation of head
    motion, make it work on filmed faces to within a few frames: one short clip tells little, many clips tell more. It
    does not recognise which sounds are spoken.

    Args:
        finder: Face finder.
    """

    dimension = "audio-visual sync"
    turns = "speaking"
    doubt = (
        "It sees that a mouth moves when it is loud, not which sounds it makes. For filmed people the mean over many "
        "clips tells whether audio and mouth go together, and the offset to about a frame; the values of one clip, "
        "above all its offset, tell next to nothing."
    )
    columns = (
        Column("Sync-C", "higher", worst=0.0),
        Column("Sync-D", "lower", worst=2.0),
        Column("Sync r", "higher", worst=-1.0),
        Column("offset", "lower", digits=1, worst=MAX_LAG + 1.0),
    )

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "rank correlation of mouth motion and loudness, whole and without what is slow, "
            f"lags +-{MAX_LAG}",
            **self.finder.spec(),
            "frames": "all",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        faces = self.finder(media)
        mouth = crops(media.frames, region_boxes(faces.boxes, MOUTH), SIZE).mean(1)
        if is_silent(media.waveform):
            return {"correlation": np.zeros(2 * MAX_LAG + 1)}
        mouth_motion, level = motion(mouth), loudness(media.waveform, len(mouth))
        curves = [correlations(mouth_motion, level), correlations(_syllables(mouth_motion), _syllables(level))]
        return {"correlation": np.mean(curves, axis=0)}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return peak(generated["correlation"])


def peak(correlation: Floats) -> dict[str, float]:
    """Computes the columns from the correlations at all lags, (2 MAX_LAG + 1,); `nan` for a flat curve."""
    if np.ptp(correlation) < 1e-9:
        return dict.fromkeys(("Sync-C", "Sync-D", "Sync r", "offset"), float("nan"))
    best = float(correlation.max())
    return {
        "Sync-C": best - float(np.median(correlation)),
        "Sync-D": 1 - best,
        "Sync r": float(correlation[MAX_LAG]),
        "offset": float(abs(np.argmax(correlation) - MAX_LAG)),
    }


def motion(mouth: Tensor) -> Floats:
    """Returns the change of a grey mouth region (N, h, w) around each frame, (N,), without head motion and light."""
    normalised = mouth / mouth.mean((1, 2), keepdim=True).clamp(min=1e-3)
    still = _stabilise(normalised)
    change = still.diff(dim=0).abs().mean((1, 2))
    if not len(change):
        return np.zeros(len(mouth))
    before, after = F.pad(change, (1, 0)), F.pad(change, (0, 1))
    before[0], after[-1] = change[0], change[-1]
    return ((before + after) / 2).double().numpy()


def _syllables(track: Floats) -> Floats:
    """Band-passes a track (N,): removes changes slower than a phrase and those between single frames."""
    return gaussian_filter1d(track, 1.0) - gaussian_filter1d(gaussian_filter1d(track, 1.0), PHRASE)


def sway(region: Tensor) -> Tensor:
    """Estimates the shifts (N, 2), pixels down and right, of grey frames (N, h, w) from their median frame.

    One Gauss-Newton step is taken.
    """
    middle = region.median(0).values
    down, right = torch.gradient(middle)
    design = torch.stack([down, right, torch.ones_like(middle), middle], dim=-1).flatten(0, 1).double()
    change = (region - middle).flatten(1).double()
    steps = torch.linalg.lstsq(design, change.T, driver="gelsd").solution.float()  # (4, N)
    return steps[:2].T.clamp(-6, 6)


def _stabilise(mouth: Tensor) -> Tensor:
    """Shifts every frame of a grey region (N, h, w) by a few pixels to match the median frame."""
    height, width = mouth.shape[1:]
    shift = torch.zeros(len(mouth), 2, 3)
    shift[:, 0, 0] = shift[:, 1, 1] = 1
    down, right = sway(mouth).T
    shift[:, 0, 2], shift[:, 1, 2] = -2 * right / width, -2 * down / height
    grid = F.affine_grid(shift, [len(mouth), 1, height, width], align_corners=False)
    return F.grid_sample(mouth[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def loudness(waveform: Tensor, frames: int) -> Floats:
    """Returns the log of the root mean square of the waveform (n,) around each frame, (frames,).

    The window is centred on the instant at which the frame was taken, as is the motion around a frame, which compares
    the frames before and after. The audio *while the frame is shown* is half a frame later.
    """
    instants = np.arange(frames + 1) - 0.5
    edges = np.round(instants * len(waveform) / max(1, frames)).astype(int).clip(0, len(waveform))
    energy = np.concatenate([[0.0], np.cumsum(waveform.double().numpy() ** 2)])[edges]
    return np.log(np.sqrt(np.diff(energy) / np.maximum(np.diff(edges), 1)) + QUIET)


def correlations(movement: Floats, level: Floats, max_lag: int = MAX_LAG) -> Floats:
    """Returns the rank correlation at each lag, (2 max_lag + 1,); 0 at lags for which the overlap is too short.

    Args:
        movement: Motion around each frame, (N,).
        level: Loudness around each frame, (N,).
        max_lag: Largest lag in frames; at a positive lag the audio is later than the motion.
    """
    length = min(len(movement), len(level))
    movement, level = rankdata(movement[:length]), rankdata(level[:length])
    curve = np.zeros(2 * max_lag + 1)
    for lag in range(-max_lag, max_lag + 1):
        a, b = movement[max(0, -lag) : length - max(0, lag)], level[max(0, lag) : length - max(0, -lag)]
        if len(a) > max_lag and a.std() > 1e-9 and b.std() > 1e-9:
            curve[lag + max_lag] = np.corrcoef(a, b)[0, 1]
    return curve
