"""FVD by StyleGAN-V's convention: 400 logits of I3D (Kinetics) as TorchScript (Skorokhodov et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vidchat.bench.canonical.published_weights import read_script
from vidchat.bench.metric import Column, Features, Metric, even_indices, need_file
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

MIN_FRAMES = 10  # fewer would be pooled to nothing


class I3d(Metric):
    """Fréchet distance over the features of `i3d_torchscript.pt`, which rescales and resizes; one window per clip.

    TorchScript files are programs: use them only from a source that you trust.

    Args:
        path: TorchScript file.
        frames: Number of frames of each clip, evenly spaced; 10 or more.
        device: Device of the network.
    """

    dimension = "video quality"
    columns = (Column("FVD", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, path: Path | str, frames: int = 16, device: str = "cpu") -> None:
        self.path = need_file(path, "the TorchScript I3D of StyleGAN-V, i3d_torchscript.pt")
        if frames < MIN_FRAMES:
            raise ValueError(f"I3D needs {MIN_FRAMES} frames or more, not {frames}")
        self.frames, self.device = frames, device
        self.net = read_script(self.path, device)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "i3d_torchscript, rescale=True, resize=True, return_features=True",
            "weights": file_hash(self.path),
            "frames": f"{self.frames} evenly, one window a clip",
            "libraries": versions("torch"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        chosen = media.frames[torch.from_numpy(even_indices(len(media.frames), self.frames))]
        video = chosen.transpose(0, 1)[None].float().to(self.device)  # (1, 3, frames, H, W) in [0, 255]
        return {"rows": self.net(video, rescale=True, resize=True, return_features=True).float().cpu().numpy()}
