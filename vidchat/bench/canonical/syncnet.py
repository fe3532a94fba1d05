"""SyncNet (Chung and Zisserman 2016): distance of mouths and sounds over lags, with the weights `syncnet_v2.model`.

Sync-C is the median distance over lags less the smallest, Sync-D the smallest, as LSE-C and LSE-D. Both are blind to
an offset within the lags, so two more numbers are given: `offset`, and `Sync-C0`, the confidence at lag 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from scipy.signal import medfilt
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.bench.canonical.mfcc import mfcc
from vidchat.bench.canonical.published_weights import read_weights
from vidchat.bench.faces import FaceFinder, Faces
from vidchat.bench.metric import BackendError, Column, Features, Metric, need_file
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

SPAN, SHIFT, BATCH = 5, 15, 20  # frames that it looks at together, lags either way, windows at once
FARTHEST = 100.0  # some five times any distance that was published
SIDE, MARGIN, GREY, SMOOTHING = 224, 0.40, 110, 13  # of the crop around the face


class SyncNet(Metric):
    """SyncNet over the whole clip as one track, however short, at 25 frames and 16,000 samples a second.

    The original finds faces by S3FD and drops tracks shorter than 100 frames; here the given finder's box is followed
    through the whole clip, which the protocol string says.

    Args:
        path: `syncnet_v2.model`, a state dict.
        finder: Where the face is.
        device: Where it runs.
    """

    dimension = "audio-visual sync"
    columns = (
        Column("Sync-C", "higher", worst=0.0),
        Column("Sync-D", "lower", worst=FARTHEST),
        Column("Sync-C0", "higher", worst=-FARTHEST),
        Column("offset", "lower", digits=1, worst=SHIFT + 1.0),
    )
    proxy = False
    turns = "speaking"

    def __init__(self, path: Path | str, finder: FaceFinder, device: str = "cpu") -> None:
        self.path = need_file(path, "SyncNet's weights, syncnet_v2.model")
        self.finder, self.device = finder, device
        self.net = load_syncnet(self.path).to(device)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"SyncNet, lags +-{SHIFT}, one track of the whole clip",
            "weights": file_hash(self.path),
            **self.finder.spec(),
            "crop": f"median {SMOOTHING}, scale {MARGIN}, bilinear to {SIDE}",
            "frames": "all",
            "libraries": versions("torch", "scipy"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        if (media.fps, media.sample_rate) != (25, 16000):
            raise ValueError("SyncNet takes 25 frames and 16000 samples a second")
        track = face_track(media.frames, self.finder(media))
        return {"distances": self.distances(track, media.waveform).numpy()}

    @torch.no_grad()
    def distances(self, track: Tensor, waveform: Tensor) -> Tensor:
        """(2 SHIFT + 1,) mean distance at each lag; empty for a clip too short to look at.

        Args:
            track: (N, 3, 224, 224) uint8 R, G, B.
            waveform: (n,) in [-1, 1].
        """
        windows = min(len(track), len(waveform) // 640) - SPAN
        if windows < 1:
            return torch.zeros(0)
        frames = track.flip(1)  # B, G, R
        cepstra = torch.from_numpy(mfcc(np.round(waveform.double().numpy() * 32767)).T).float()
        mouths, waveforms = [], []
        for first in range(0, windows, BATCH):
            chosen = range(first, min(windows, first + BATCH))
            seen = torch.stack([frames[i : i + SPAN].transpose(0, 1).float() for i in chosen])
            heard = torch.stack([cepstra[None, :, 4 * i : 4 * i + 4 * SPAN] for i in chosen])
            mouths.append(self.net.see(seen.to(self.device)).cpu())
            waveforms.append(self.net.hear(heard.to(self.device)).cpu())
        return lag_distances(torch.cat(mouths), torch.cat(waveforms))

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return confidences(made["distances"])


def confidences(distances: np.ndarray) -> dict[str, float]:
    """The columns from the mean distances at lags; `nan` for a clip too short, or a flat curve, which peaks nowhere."""
    if not len(distances) or np.ptp(distances) <= 1e-6:
        return dict.fromkeys(("Sync-C", "Sync-D", "Sync-C0", "offset"), float("nan"))
    best = int(distances.argmin())
    middle = float(np.sort(distances)[(len(distances) - 1) // 2])
    return {
        "Sync-C": middle - float(distances[best]),
        "Sync-D": float(distances[best]),
        "Sync-C0": middle - float(distances[SHIFT]),
        "offset": float(abs(SHIFT - best)),
    }


def lag_distances(mouths: Tensor, waveforms: Tensor) -> Tensor:
    """(2 SHIFT + 1,) mean over windows of the distance of features (n, D) to those of sounds SHIFT before to after.

    Beyond the ends sounds are zero, as in the published evaluation.
    """
    padded = F.pad(waveforms, (0, 0, SHIFT, SHIFT))
    lags = [F.pairwise_distance(mouths, padded[lag : lag + len(mouths)]) for lag in range(2 * SHIFT + 1)]
    return torch.stack(lags).mean(1)


def face_track(frames: Tensor, faces: Faces) -> Tensor:
    """(N, 3, 224, 224) uint8: the face followed, with a margin, below its middle more than above."""
    left, top, right, bottom = faces.boxes.T
    width = min(SMOOTHING, len(left) - 1 + len(left) % 2)
    half, y, x = (
        medfilt(track, kernel_size=width)
        for track in (np.maximum(bottom - top, right - left) / 2, (top + bottom) / 2, (left + right) / 2)
    )
    return torch.stack([_crop(frame, *place) for frame, *place in zip(frames, half, y, x, strict=True)])


def _crop(frame: Tensor, half: float, y: float, x: float) -> Tensor:
    border = int(half * (1 + 2 * MARGIN))
    padded = F.pad(frame[None].float(), (border,) * 4, value=GREY)
    rows = slice(int(y + border - half), int(y + border + half * (1 + 2 * MARGIN)))
    columns = slice(int(x + border - half * (1 + MARGIN)), int(x + border + half * (1 + MARGIN)))
    part = padded[..., max(0, rows.start) : rows.stop, max(0, columns.start) : columns.stop]
    return F.interpolate(part, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].round().clamp(0, 255).byte()


class Network(nn.Module):
    """The two streams, with the published file's names."""

    def __init__(self, width: int = 1024) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)), nn.MaxPool2d(1, 1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)), nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)),
            *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)), nn.MaxPool2d(3, 2),
            *_layer(nn.Conv2d(256, 512, (5, 4))),
        )  # fmt: skip
        self.netfcaud = _head(width)
        self.netfclip = _head(width)
        spatial, halve = (1, 3, 3), (1, 2, 2)
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (SPAN, 7, 7), halve)), nn.MaxPool3d(spatial, halve),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), halve, (0, 1, 1))), nn.MaxPool3d(spatial, halve, (0, 1, 1)),
            *_layer(nn.Conv3d(256, 256, spatial, padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, spatial, padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, spatial, padding=(0, 1, 1))), nn.MaxPool3d(spatial, halve),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )  # fmt: skip

    def see(self, frames: Tensor) -> Tensor:
        """(B, 3, 5, 224, 224) in [0, 255] to (B, width)."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))

    def hear(self, cepstra: Tensor) -> Tensor:
        """(B, 1, 13, 20) to (B, width)."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))


def load_syncnet(path: Path) -> Network:
    """The network with published weights, ready to use.

    Raises:
        BackendError: The file is no state dict of it.
    """
    net = Network()
    try:
        net.load_state_dict(read_weights(path))
    except (RuntimeError, BackendError) as error:
        raise BackendError(f"{path}: holds no weights of SyncNet; give syncnet_v2.model ({error})") from None
    return net.eval()


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, width))
