"""How an answer holds its face: the first half second against the last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidchat.bench.proxy.drift import sharpness


@dataclass(frozen=True)
class Decay:
    """PSNR and sharpness against the reference, at both ends of an answer.

    Attributes:
        psnr_first: Mean PSNR of the first half second to the reference, in dB.
        psnr_last: The same of the last half second.
        sharpness_first: Mean sharpness of the first half second, relative to the reference's.
        sharpness_last: The same of the last half second.
    """

    psnr_first: float
    psnr_last: float
    sharpness_first: float
    sharpness_last: float


def decay(frames: Tensor, reference: Tensor, fps: int) -> Decay:
    """Returns the scores of an answer (n, 3, H, W) uint8, given its reference (3, H, W) uint8."""
    half = max(1, fps // 2)
    psnr = [_psnr(frame, reference) for frame in frames]
    sharp = np.array([sharpness(frame) for frame in frames]) / max(sharpness(reference), 1e-6)
    first, last = slice(None, half), slice(-half, None)
    return Decay(*(float(np.mean(values[part])) for values in (psnr, sharp) for part in (first, last)))


def _psnr(frame: Tensor, reference: Tensor) -> float:
    error = (frame.float() - reference.float()).square().mean().clamp(min=1e-2)
    return float(10 * torch.log10(255**2 / error))
