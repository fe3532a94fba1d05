"""Which of some sentences an audio is nearest to: dynamic time warping over cepstra.

A measure for a closed set of answers, not a recogniser: it needs no weights, and the true answer shows its ceiling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.signal import stft
from transformers.audio_utils import mel_filter_bank

Floats = NDArray[np.float64]

WINDOW, HOP, MELS, CEPSTRA = 512, 256, 40, 13


def cepstra(waveform: NDArray[np.float32], sample_rate: int) -> Floats:
    """(frames, 2 * CEPSTRA) normalised mel cepstra and their differences, of the spoken part of an audio.

    Frames 40 dB below the loudest at both ends are left out; what is left is scaled to zero mean and unit variance,
    so that the level, the channel and much of the voice do not count.
    """
    _, _, spectrum = stft(waveform, sample_rate, nperseg=WINDOW, noverlap=WINDOW - HOP, padded=True)
    power = np.abs(spectrum.T) ** 2
    spoken = np.flatnonzero(power.sum(1) > power.sum(1).max() * 1e-4)
    if power.max() > 0:
        power = power[spoken[0] : spoken[-1] + 1]
    bank = mel_filter_bank(WINDOW // 2 + 1, MELS, 60.0, sample_rate / 2, sample_rate)
    log = np.log(np.maximum(power @ bank, power.max() * 1e-6 + 1e-12))
    coefficients = dct(log, norm="ortho")[:, 1 : CEPSTRA + 1]
    features = np.concatenate([coefficients, np.gradient(coefficients, axis=0)], axis=1)
    return (features - features.mean(0)) / (features.std(0) + 1e-6)


def warped_distance(a: Floats, b: Floats) -> float:
    """Mean distance of two sequences (n, D) and (m, D) along their best alignment."""
    cost = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0))
    rows, cols = cost.shape
    best = np.full((rows + 1, cols + 1), np.inf)
    best[0, 0] = 0
    for diagonal in range(2, rows + cols + 1):  # all cells of one diagonal at once
        i = np.arange(max(1, diagonal - cols), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        # A diagonal step counts both frames it passes, so the path's weight is always n + m.
        straight = best[i - 1, j - 1] + 2 * cost[i - 1, j - 1]
        best[i, j] = np.minimum(straight, np.minimum(best[i - 1, j], best[i, j - 1]) + cost[i - 1, j - 1])
    return float(best[rows, cols] / (rows + cols))


def nearest_sentence(waveform: NDArray[np.float32], spoken: Mapping[str, Sequence[Floats]], sample_rate: int) -> str:
    """Returns the sentence one of whose utterances is nearest; for silence, the first.

    Args:
        waveform: Samples of the answer, (n,).
        spoken: `cepstra` of each sentence, spoken by several voices, so that the voice of an answer does not matter.
        sample_rate: Sample rate of the waveform.
    """
    heard = cepstra(waveform, sample_rate)
    distances = {text: min(warped_distance(heard, one) for one in several) for text, several in spoken.items()}
    return min(distances, key=lambda text: distances[text])
