"""Mel cepstra as computed by the package `python_speech_features`, on which SyncNet was trained."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

Floats = NDArray[np.float64]

RATE, WINDOW, STEP, TRANSFORM = 16000, 400, 160, 512
FILTERS, CEPSTRA, LIFTER, EMPHASIS = 26, 13, 22, 0.97


def mfcc(samples: Floats) -> Floats:
    """Computes mel cepstra, (frames, 13), 100 per second; the first coefficient is the log energy.

    Args:
        samples: Samples at 16 kHz in the range of int16, (n,).
    """
    emphasised = np.append(samples[0], samples[1:] - EMPHASIS * samples[:-1])
    count = 1 if len(samples) <= WINDOW else 1 + int(np.ceil((len(samples) - WINDOW) / STEP))
    padded = np.append(emphasised, np.zeros(max(0, (count - 1) * STEP + WINDOW - len(emphasised))))
    frames = padded[np.arange(WINDOW) + STEP * np.arange(count)[:, None]]
    power = np.abs(np.fft.rfft(frames, TRANSFORM)) ** 2 / TRANSFORM
    smallest = np.finfo(float).eps
    energy, mel = power.sum(1), power @ _filters().T
    log = np.log(np.where(mel == 0, smallest, mel))
    cepstra = dct(log, norm="ortho", axis=1)[:, :CEPSTRA]
    cepstra *= 1 + (LIFTER / 2) * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, smallest, energy))
    return cepstra


def _filters() -> Floats:
    """Returns triangular filters, (FILTERS, bins), evenly spaced in mels, with corners on whole bins."""
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), FILTERS + 2)
    corners = np.floor((TRANSFORM + 1) * 700 * (10 ** (mels / 2595) - 1) / RATE).astype(int)
    triangles = np.zeros((FILTERS, TRANSFORM // 2 + 1))
    for row, (low, top, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        triangles[row, low:top] = (np.arange(low, top) - low) / max(top - low, 1)
        triangles[row, top:high] = (high - np.arange(top, high)) / max(high - top, 1)
    return triangles
