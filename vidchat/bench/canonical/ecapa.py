"""ECAPA-TDNN (Desplanques et al. 2020) on the hidden states of a self-supervised model, with UniSpeech's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, LAST, SCALE, BOTTLENECK, EMBEDDING = 512, 1536, 8, 128, 256


class Ecapa(nn.Module):
    """Speaker embedding from a weighted sum of the hidden states of all layers.

    Args:
        layers: Number of layers.
        channels: Number of channels of a hidden state.
    """

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.feature_weight = nn.Parameter(torch.zeros(layers))
        self.instance_norm = nn.InstanceNorm1d(channels)
        self.layer1 = _Conv(channels, WIDTH, 5, padding=2)
        self.layer2 = _Block(dilation=2)
        self.layer3 = _Block(dilation=3)
        self.layer4 = _Block(dilation=4)
        self.conv = nn.Conv1d(3 * WIDTH, LAST, 1)
        self.pooling = _Pooling()
        self.bn = nn.BatchNorm1d(2 * LAST)
        self.linear = nn.Linear(2 * LAST, EMBEDDING)

    def forward(self, states: Tensor) -> Tensor:
        """Maps hidden states (B, layers, frames, channels) to embeddings (B, 256)."""
        weights = self.feature_weight.softmax(0)
        mixed = torch.einsum("l,bltc->bct", weights, states) + 1e-6
        x2 = self.layer2(self.layer1(self.instance_norm(mixed)))
        x3 = self.layer3(x2)
        x4 = self.layer4(x3)
        joined = self.conv(torch.cat([x2, x3, x4], dim=1)).relu()
        return self.linear(self.bn(self.pooling(joined)))


class _Conv(nn.Module):
    def __init__(self, before: int, after: int, kernel: int = 1, padding: int = 0, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(before, after, kernel, padding=padding, dilation=dilation)
        self.bn = nn.BatchNorm1d(after)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x).relu())


class _Res2(nn.Module):
    """Res2 block: each eighth of the channels is convolved after adding the previous result; the last is unchanged."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        part = WIDTH // SCALE
        convolutions = [nn.Conv1d(part, part, 3, padding=dilation, dilation=dilation) for _ in range(SCALE - 1)]
        self.convs = nn.ModuleList(convolutions)
        self.bns = nn.ModuleList(nn.BatchNorm1d(part) for _ in range(SCALE - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(x.chunk(SCALE, dim=1))
        previous = torch.zeros_like(parts[0])
        for index, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            previous = norm(conv(previous + parts[index]).relu())
            parts[index] = previous
        return torch.cat(parts, dim=1)


class _Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WIDTH, BOTTLENECK)
        self.linear2 = nn.Linear(BOTTLENECK, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear2(self.linear1(x.mean(2)).relu()).sigmoid()[..., None]


class _Block(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1 = _Conv(WIDTH, WIDTH)
        self.Res2Conv1dReluBn = _Res2(dilation)
        self.Conv1dReluBn2 = _Conv(WIDTH, WIDTH)
        self.SE_Connect = _Gate()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))


class _Pooling(nn.Module):
    """Attentive statistics pooling: mean and standard deviation over time, with weights for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(LAST, BOTTLENECK, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK, LAST, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.linear2(self.linear1(x).tanh()).softmax(2)
        mean = (weights * x).sum(2)
        variance = (weights * x.square()).sum(2) - mean.square()
        return torch.cat([mean, variance.clamp(min=1e-9).sqrt()], dim=1)
