"""Proxies of FID and FVD: Fréchet distances over features of fixed random convolutions.

Random convolutions distinguish textures, colours, layouts and (in three dimensions) motions, though not as people do. A
distance of 0 means equal, a larger one more different; no value can be compared with an FID or FVD.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.bench.metric import Column, Features, Metric, even_indices
from vidchat.bench.protocol import versions, weights_hash
from vidchat.data.media.read import Media

SEED = 20250712
WIDTHS = (24, 48, 64)
SIDE = 64  # frames are averaged down to this size


class RandomFeatures(Metric):
    """Base class of both proxies, whose features lie in [0, 1)."""

    dimension = "video quality"
    doubt = "It sees textures, colours, layout and motion, not whether it is a person: trust large differences only."

    def absent(self, truth: Features) -> Features:
        """Returns -1 in every dimension: farther from any truth than the features of a clip, which are at least 0."""
        return {"rows": -np.ones_like(truth["rows"])}


class RandomFrames(RandomFeatures):
    """Proxy of FID: pooled activations of a random convolutional network on single frames.

    Args:
        frames: Number of frames of each clip, evenly spaced.
    """

    columns = (Column("FID", "lower", "frechet"),)

    def __init__(self, frames: int = 8) -> None:
        self.frames = frames
        self.net = _random_net(nn.Conv2d, 3, stride=2)

    def spec(self) -> Mapping[str, object]:
        return _spec("on single frames", self.net, self.frames)

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        frames = _read_small(media, self.frames)
        return {"rows": _pooled(self.net, frames).numpy()}


class RandomMotion(RandomFeatures):
    """Proxy of FVD: pooled activations of a random three-dimensional convolutional network on frames and their changes.

    Args:
        frames: Number of frames of each clip, evenly spaced.
    """

    columns = (Column("FVD", "lower", "frechet"),)

    def __init__(self, frames: int = 16) -> None:
        self.frames = frames
        self.net = _random_net(nn.Conv3d, 6, stride=(1, 2, 2))

    def spec(self) -> Mapping[str, object]:
        return _spec("on frames and their changes", self.net, self.frames)

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        frames = _read_small(media, self.frames)
        change = frames.diff(dim=0, prepend=frames[:1])
        video = torch.cat([frames, 4 * change], dim=1).transpose(0, 1)[None]
        return {"rows": _pooled(self.net, video).numpy()}


def _read_small(media: Media, frames: int) -> Tensor:
    """Returns frames of a clip, evenly spaced and averaged down, (frames, 3, SIDE, SIDE) in [-1, 1]."""
    chosen = media.frames[torch.from_numpy(even_indices(len(media.frames), frames))]
    return F.interpolate(chosen.float() / 127.5 - 1, (SIDE, SIDE), mode="area")


def _spec(inputs: str, net: nn.Module, frames: int) -> Mapping[str, object]:
    """Returns the specification of both proxies."""
    return {
        "backend": f"random convolutions {inputs}, pooled, m / (1 + m)",
        "weights": weights_hash(net),
        "frames": f"{frames} evenly",
        "input": f"{SIDE}x{SIDE}, area",
        "libraries": versions("torch"),
    }


def _random_net(
    kind: type[nn.Conv2d] | type[nn.Conv3d], channels: int, stride: int | tuple[int, int, int]
) -> nn.ModuleList:
    """Builds convolutions with weights drawn by numpy, whose random numbers do not change between versions."""
    rng = np.random.default_rng(SEED)
    net = nn.ModuleList()
    for before, after in pairwise((channels, *WIDTHS)):
        layer = kind(before, after, 3, stride, padding=1)  # type: ignore[arg-type]
        scale = np.sqrt(2 / layer.weight[0].numel())
        layer.weight.data = torch.from_numpy(rng.normal(size=tuple(layer.weight.shape)) * scale).float()
        layer.bias.data = torch.from_numpy(0.1 * rng.normal(size=after)).float()  # type: ignore[union-attr]
        net.append(layer)
    return net.eval()


def _pooled(net: nn.ModuleList, x: Tensor) -> Tensor:
    """Returns features (n, sum of WIDTHS) in [0, 1): the mean m of every channel of every layer, as m / (1 + m)."""
    means = []
    for layer in net:
        x = layer(x).relu()
        means.append(x.flatten(2).mean(2))
    pooled = torch.cat(means, dim=1)
    return pooled / (1 + pooled)
