"""A stand-in for SyncNet: does the mouth move when the voice is loud, and best at the time at which it is played?"""

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
from vidchat.bench.faces import MOUTH, FaceFinder, crops, part_of
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

REACH = 15  # frames by which the audio is shifted either way, as SyncNet's `vshift`
SIZE = (32, 48)  # of the mouth's crop
PHRASE = 12.0  # frames; what changes more slowly is whether somebody speaks, not what
QUIET = 1e-3  # loudness below which quieter makes no difference


class MouthAndLoudness(Metric):
    """Rank correlation of the mouth region's motion and the loudness, at lags of -15 ... 15 frames.

    It is the mean of two: of both as they are, which tells speaking from silence, and of both without what changes more
    slowly than half a second, which tells syllables.

    `Sync r` is the correlation as played: it falls as the audio is shifted away. `Sync-C` is the best correlation
    less the median one, wherever the best is; `Sync-D` is one less the best; `offset` is how far
    from 0 that is, in frames. The last three are formed as SyncNet's are, which does not punish an offset either.
    Ranks, and the mouth held still against the head's sway, make it work on filmed faces to within a few frames; of
    one short clip it is a weak witness, of many a fair one. It cannot hear which audio is spoken.

    Args:
        finder: Where the face is.
    """

    dimension = "audio-visual sync"
    turns = "speaking"
    doubt = (
        "It sees that a mouth moves when it is loud, not which audio it makes. Of filmed people the mean over many "
        "clips tells whether audio and mouth go together, and at which offset to about a frame; one clip's values, its "
        "offset above all, tell next to nothing."
    )
    columns = (
        Column("Sync-C", "higher", worst=0.0),
        Column("Sync-D", "lower", worst=2.0),
        Column("Sync r", "higher", worst=-1.0),
        Column("offset", "lower", digits=1, worst=REACH + 1.0),
    )

    def __init__(self, finder: FaceFinder) -> None:
        self.finder = finder

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"rank correlation of mouth motion and loudness, whole and without what is slow, lags +-{REACH}",
            **self.finder.spec(),
            "frames": "all",
            "libraries": versions("torch"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        faces = self.finder(media)
        mouth = crops(media.frames, part_of(faces.boxes, MOUTH), SIZE).mean(1)
        if is_silent(media.waveform):
            return {"correlation": np.zeros(2 * REACH + 1)}
        moved, loud = motion(mouth), loudness(media.waveform, len(mouth))
        curves = [correlations(moved, loud), correlations(_syllables(moved), _syllables(loud))]
        return {"correlation": np.mean(curves, axis=0)}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return peak(made["correlation"])


def peak(correlation: Floats) -> dict[str, float]:
    """The columns from the correlations at lags -REACH ... REACH; `nan` for a flat curve, which peaks nowhere."""
    if np.ptp(correlation) < 1e-9:
        return dict.fromkeys(("Sync-C", "Sync-D", "Sync r", "offset"), float("nan"))
    best = float(correlation.max())
    return {
        "Sync-C": best - float(np.median(correlation)),
        "Sync-D": 1 - best,
        "Sync r": float(correlation[REACH]),
        "offset": float(abs(np.argmax(correlation) - REACH)),
    }


def motion(mouth: Tensor) -> Floats:
    """(N,) how much a grey mouth (N, h, w) changes around each frame, its sway and the light left out."""
    lit = mouth / mouth.mean((1, 2), keepdim=True).clamp(min=1e-3)
    still = _hold_still(lit)
    change = still.diff(dim=0).abs().mean((1, 2))
    if not len(change):
        return np.zeros(len(mouth))
    before, after = F.pad(change, (1, 0)), F.pad(change, (0, 1))
    before[0], after[-1] = change[0], change[-1]
    return ((before + after) / 2).double().numpy()


def _syllables(track: Floats) -> Floats:
    """(N,) what changes faster than a phrase and slower than from frame to frame."""
    return gaussian_filter1d(track, 1.0) - gaussian_filter1d(gaussian_filter1d(track, 1.0), PHRASE)


def sway(region: Tensor) -> Tensor:
    """(N, 2) pixels down and right by which grey frames (N, h, w) lie off the median one (one Gauss-Newton step)."""
    middle = region.median(0).values
    down, right = torch.gradient(middle)
    design = torch.stack([down, right, torch.ones_like(middle), middle], dim=-1).flatten(0, 1).double()
    change = (region - middle).flatten(1).double()
    steps = torch.linalg.lstsq(design, change.T, driver="gelsd").solution.float()  # (4, N)
    return steps[:2].T.clamp(-6, 6)


def _hold_still(mouth: Tensor) -> Tensor:
    """Every frame moved by a fraction of a pixel, or a few, to lie best on the median one."""
    height, width = mouth.shape[1:]
    shift = torch.zeros(len(mouth), 2, 3)
    shift[:, 0, 0] = shift[:, 1, 1] = 1
    down, right = sway(mouth).T
    shift[:, 0, 2], shift[:, 1, 2] = -2 * right / width, -2 * down / height
    grid = F.affine_grid(shift, [len(mouth), 1, height, width], align_corners=False)
    return F.grid_sample(mouth[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def loudness(waveform: Tensor, frames: int) -> Floats:
    """(N,) log of the root mean square of the audio around each frame.

    The window lies around the instant at which the frame was taken, half a frame to either side, as the motion around
    a frame does (from the one before to the one after). The audio *while the frame is shown* is half a frame later.
    """
    instants = np.arange(frames + 1) - 0.5
    edges = np.round(instants * len(waveform) / max(1, frames)).astype(int).clip(0, len(waveform))
    energy = np.concatenate([[0.0], np.cumsum(waveform.double().numpy() ** 2)])[edges]
    return np.log(np.sqrt(np.diff(energy) / np.maximum(np.diff(edges), 1)) + QUIET)


def correlations(movement: Floats, loud: Floats, reach: int = REACH) -> Floats:
    """(2 reach + 1,) rank correlation of what overlaps when the audio is taken -reach ... reach frames later.

    Clips too short for a lag have 0 there.
    """
    length = min(len(movement), len(loud))
    movement, loud = rankdata(movement[:length]), rankdata(loud[:length])
    curve = np.zeros(2 * reach + 1)
    for lag in range(-reach, reach + 1):
        a, b = movement[max(0, -lag) : length - max(0, lag)], loud[max(0, lag) : length - max(0, -lag)]
        if len(a) > reach and a.std() > 1e-9 and b.std() > 1e-9:
            curve[lag + reach] = np.corrcoef(a, b)[0, 1]
    return curve
