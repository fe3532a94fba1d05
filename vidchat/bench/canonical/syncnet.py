"""SyncNet (Chung and Zisserman 2016): distances of mouths and audio over lags, with the weights `syncnet_v2.model`.

Sync-C is the median distance over lags minus the smallest, Sync-D the smallest, as LSE-C and LSE-D. Both ignore an
offset within the lags, so there are two more columns: `offset`, and `Sync-C0`, the confidence at lag 0.
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

SPAN, MAX_LAG, BATCH = 5, 15, 20  # frames in a window, largest lag, windows in a batch
MAX_DISTANCE = 100.0  # some five times any published distance
SIDE, MARGIN, GREY, SMOOTHING = 224, 0.40, 110, 13  # of the crop around the face


class SyncNet(Metric):
    """SyncNet over the whole clip as one track, however short, at 25 frames and 16,000 samples a second.

    The original finds faces by S3FD and drops tracks shorter than 100 frames. Here the box of the given face finder is
    followed through the whole clip, as the protocol string states.

    Args:
        path: File `syncnet_v2.model`, a state dict.
        finder: Face finder.
        device: Device of the network.
    """

    dimension = "audio-visual sync"
    columns = (
        Column("Sync-C", "higher", worst=0.0),
        Column("Sync-D", "lower", worst=MAX_DISTANCE),
        Column("Sync-C0", "higher", worst=-MAX_DISTANCE),
        Column("offset", "lower", digits=1, worst=MAX_LAG + 1.0),
    )
    proxy = False
    turns = "speaking"

    def __init__(self, path: Path | str, finder: FaceFinder, device: str = "cpu") -> None:
        self.path = need_file(path, "SyncNet's weights, syncnet_v2.model")
        self.finder, self.device = finder, device
        self.net = load_syncnet(self.path).to(device)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"SyncNet, lags +-{MAX_LAG}, one track of the whole clip",
            "weights": file_hash(self.path),
            **self.finder.spec(),
            "crop": f"median {SMOOTHING}, scale {MARGIN}, bilinear to {SIDE}",
            "frames": "all",
            "libraries": versions("torch", "scipy"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        if (media.fps, media.sample_rate) != (25, 16000):
            raise ValueError("SyncNet needs 25 frames and 16000 samples per second")
        track = face_track(media.frames, self.finder(media))
        return {"distances": self.distances(track, media.waveform).numpy()}

    @torch.no_grad()
    def distances(self, track: Tensor, waveform: Tensor) -> Tensor:
        """Returns the mean distance at each lag, (2 MAX_LAG + 1,); empty for a clip shorter than a window.

        Args:
            track: Face crops in R, G, B, (N, 3, 224, 224) uint8.
            waveform: Samples in [-1, 1], (n,).
        """
        windows = min(len(track), len(waveform) // 640) - SPAN
        if windows < 1:
            return torch.zeros(0)
        frames = track.flip(1)  # B, G, R
        cepstra = torch.from_numpy(mfcc(np.round(waveform.double().numpy() * 32767)).T).float()
        mouths, sounds = [], []
        for first in range(0, windows, BATCH):
            chosen = range(first, min(windows, first + BATCH))
            mouth_windows = torch.stack([frames[i : i + SPAN].transpose(0, 1).float() for i in chosen])
            sound_windows = torch.stack([cepstra[None, :, 4 * i : 4 * i + 4 * SPAN] for i in chosen])
            mouths.append(self.net.embed_mouth(mouth_windows.to(self.device)).cpu())
            sounds.append(self.net.embed_audio(sound_windows.to(self.device)).cpu())
        return lag_distances(torch.cat(mouths), torch.cat(sounds))

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return confidences(generated["distances"])


def confidences(distances: np.ndarray) -> dict[str, float]:
    """Computes the columns from the distances at lags (2 MAX_LAG + 1,); `nan` for an empty or flat curve."""
    if not len(distances) or np.ptp(distances) <= 1e-6:
        return dict.fromkeys(("Sync-C", "Sync-D", "Sync-C0", "offset"), float("nan"))
    best = int(distances.argmin())
    middle = float(np.sort(distances)[(len(distances) - 1) // 2])
    return {
        "Sync-C": middle - float(distances[best]),
        "Sync-D": float(distances[best]),
        "Sync-C0": middle - float(distances[MAX_LAG]),
        "offset": float(abs(MAX_LAG - best)),
    }


def lag_distances(mouths: Tensor, sounds: Tensor) -> Tensor:
    """Returns the mean distance of mouths and sounds at each lag, (2 MAX_LAG + 1,).

    Beyond the ends, embeddings of sounds are zero, as in the published evaluation.

    Args:
        mouths: Embeddings of the mouth in each window, (n, D).
        sounds: Embeddings of the audio in each window, (n, D).
    """
    padded = F.pad(sounds, (0, 0, MAX_LAG, MAX_LAG))
    lags = [F.pairwise_distance(mouths, padded[lag : lag + len(mouths)]) for lag in range(2 * MAX_LAG + 1)]
    return torch.stack(lags).mean(1)


def face_track(frames: Tensor, faces: Faces) -> Tensor:
    """Crops the face from each frame (N, 3, H, W), with more margin below its centre than above.

    Returns:
        (N, 3, 224, 224) uint8.
    """
    left, top, right, bottom = faces.boxes.T
    width = min(SMOOTHING, len(left) - 1 + len(left) % 2)
    half, y, x = (
        medfilt(track, kernel_size=width)
        for track in (np.maximum(bottom - top, right - left) / 2, (top + bottom) / 2, (left + right) / 2)
    )
    return torch.stack([_crop(frame, *box) for frame, *box in zip(frames, half, y, x, strict=True)])


def _crop(frame: Tensor, half: float, y: float, x: float) -> Tensor:
    border = int(half * (1 + 2 * MARGIN))
    padded = F.pad(frame[None].float(), (border,) * 4, value=GREY)
    rows = slice(int(y + border - half), int(y + border + half * (1 + 2 * MARGIN)))
    columns = slice(int(x + border - half * (1 + MARGIN)), int(x + border + half * (1 + MARGIN)))
    part = padded[..., max(0, rows.start) : rows.stop, max(0, columns.start) : columns.stop]
    return F.interpolate(part, (SIDE, SIDE), mode="bilinear", align_corners=False)[0].round().clamp(0, 255).byte()


class Network(nn.Module):
    """The networks for mouths and audio, with the names of the published file."""

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

    def embed_mouth(self, frames: Tensor) -> Tensor:
        """Maps frames (B, 3, 5, 224, 224) in [0, 255] to embeddings (B, width)."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))

    def embed_audio(self, cepstra: Tensor) -> Tensor:
        """Maps mel cepstra (B, 1, 13, 20) to embeddings (B, width)."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))


def load_syncnet(path: Path) -> Network:
    """Loads the network with published weights, for evaluation.

    Raises:
        BackendError: The file is not a state dict of it.
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
