"""Finds the spoken sentence nearest to a waveform, by dynamic time warping over cepstra.

It suits a closed set of answers and needs no weights; it is not a speech recogniser.
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
    """Computes normalised mel cepstra and their differences over the spoken part of a waveform.

    Frames at both ends that are 40 dB below the loudest are left out. The others are scaled to zero mean and unit
    variance, which removes the level, the channel and much of the voice.

    Args:
        waveform: Samples, (n,).
        sample_rate: Sample rate of the waveform.

    Returns:
        (frames, 2 * CEPSTRA).
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
    """Returns the mean distance of two sequences (n, D) and (m, D) along their best alignment."""
    cost = np.sqrt(np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0))
    rows, cols = cost.shape
    best = np.full((rows + 1, cols + 1), np.inf)
    best[0, 0] = 0
    for diagonal in range(2, rows + cols + 1):  # all cells of a diagonal at once
        i = np.arange(max(1, diagonal - cols), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        # A diagonal step counts twice, so the weights of every path sum to n + m.
        straight = best[i - 1, j - 1] + 2 * cost[i - 1, j - 1]
        best[i, j] = np.minimum(straight, np.minimum(best[i - 1, j], best[i, j - 1]) + cost[i - 1, j - 1])
    return float(best[rows, cols] / (rows + cols))


def nearest_sentence(waveform: NDArray[np.float32], spoken: Mapping[str, Sequence[Floats]], sample_rate: int) -> str:
    """Returns the sentence with the nearest utterance; for silence, the first sentence.

    Args:
        waveform: Samples of the answer, (n,).
        spoken: Results of `cepstra` for several utterances of each sentence, by different voices.
        sample_rate: Sample rate of the waveform.
    """
    answer = cepstra(waveform, sample_rate)
    distances = {text: min(warped_distance(answer, other) for other in others) for text, others in spoken.items()}
    return min(distances, key=lambda text: distances[text])
