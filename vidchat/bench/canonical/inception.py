"""FID as clean-fid computes it: Inception's 2048 features after an antialiased bicubic resize (Parmar et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vidchat.bench.canonical.published_weights import read_script
from vidchat.bench.metric import BackendError, Column, Features, Metric, even_indices, need_file
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

SIDE = 299


class Inception(Metric):
    """Fréchet distance over the pool features of the TorchScript file `inception-2015-12-05.pt` (NVIDIA, StyleGAN).

    TorchScript files are programs: use them only from a source that you trust.

    Args:
        path: TorchScript file.
        frames: Number of frames of each clip, evenly spaced.
        device: Device of the network.
    """

    dimension = "video quality"
    columns = (Column("FID", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, path: Path | str, frames: int = 8, device: str = "cpu") -> None:
        self.path = need_file(path, "the TorchScript Inception of StyleGAN, inception-2015-12-05.pt")
        self.frames, self.device = frames, device
        self.net = read_script(self.path, device)
        if not hasattr(self.net, "layers"):
            raise BackendError(f"{path}: has no 'layers'; give StyleGAN's inception-2015-12-05.pt")

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "inception-2015-12-05, pool 2048",
            "weights": file_hash(self.path),
            "frames": f"{self.frames} evenly",
            "resize": f"PIL bicubic antialiased per channel in float to {SIDE}x{SIDE} (clean-fid)",
            "libraries": versions("torch", "pillow"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        chosen = media.frames[torch.from_numpy(even_indices(len(media.frames), self.frames))]
        frames = torch.stack([_clean_resize(frame) for frame in chosen]).to(self.device)
        return {"rows": self.net.layers((frames - 128) / 128).flatten(1).float().cpu().numpy()}


def _clean_resize(frame: Tensor) -> Tensor:
    """Resizes a frame (3, H, W) uint8 to (3, SIDE, SIDE) float in about [0, 255]."""
    channels = [
        np.asarray(Image.fromarray(channel.astype(np.float32), mode="F").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for channel in frame.numpy()
    ]
    return torch.from_numpy(np.stack(channels))
