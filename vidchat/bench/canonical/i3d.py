"""FVD by StyleGAN-V's convention: 400 logits of I3D (Kinetics) as TorchScript (Skorokhodov et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vidchat.bench.canonical.published_weights import read_script
from vidchat.bench.metric import Column, Features, Metric, evenly, need_file
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

FEWEST = 10  # frames that its pools can take


class I3d(Metric):
    """Fréchet distance over the features of `i3d_torchscript.pt`, one window a clip, rescaled and resized inside.

    TorchScript is a program: take it only from where you trust it.

    Args:
        path: The file.
        frames: Frames taken of each clip, evenly; 10 or more.
        device: Where it runs.
    """

    dimension = "video quality"
    columns = (Column("FVD", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, path: Path | str, frames: int = 16, device: str = "cpu") -> None:
        self.path = need_file(path, "the TorchScript I3D of StyleGAN-V, i3d_torchscript.pt")
        if frames < FEWEST:
            raise ValueError(f"I3D needs {FEWEST} frames or more, not {frames}")
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
        chosen = media.frames[torch.from_numpy(evenly(len(media.frames), self.frames))]
        film = chosen.transpose(0, 1)[None].float().to(self.device)  # (1, 3, frames, H, W) in [0, 255]
        return {"rows": self.net(film, rescale=True, resize=True, return_features=True).float().cpu().numpy()}
