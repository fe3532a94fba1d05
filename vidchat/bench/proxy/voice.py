"""Proxy of SIM-o: similarity of two voices in pitch and mean spectrum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.signal import stft
from transformers.audio_utils import mel_filter_bank

from vidchat.bench.clips import is_silent
from vidchat.bench.metric import Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions
from vidchat.data.media.read import Media

Floats = NDArray[np.float64]

WINDOW, HOP, MELS, CEPSTRA = 640, 160, 32, 14
LOWEST, HIGHEST = 60.0, 400.0  # range of the pitch in hertz
SEMITONES, SPECTRUM = 8.0, 2.0  # differences at which the similarity is 1/e: between those of one voice and of two


class PitchAndTimbre(Metric):
    """Similarity to the truth: exp(-(pitch difference / 8 semitones) - (difference of mean cepstra / 2)).

    It tells registers and timbres apart. Unlike SIM-o it also responds to the microphone, the room and the codec.
    """

    dimension = "voice"
    doubt = (
        "It responds to microphone and room as to a voice, and cannot tell two people of like pitch and timbre apart."
    )
    turns = "speaking"
    columns = (Column("SIM-o", "higher", worst=0.0),)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"pitch and {CEPSTRA - 1} mean mel cepstra of voiced frames, against the true answer",
            "libraries": versions("scipy", "numpy"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        if is_silent(media.waveform):
            return {"voice": np.zeros(0)}
        return {"voice": _voice(media.waveform.double().numpy(), media.sample_rate)}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        a, b = generated["voice"], truth["voice"]
        if not (len(a) and len(b)):
            return {"SIM-o": float("nan")}  # a silent clip has no voice to compare
        pitch = abs(a[0] - b[0]) / SEMITONES
        spectrum = float(np.sqrt(np.mean((a[1:] - b[1:]) ** 2))) / SPECTRUM
        return {"SIM-o": float(np.exp(-pitch - spectrum))}


def _voice(waveform: Floats, sample_rate: int) -> Floats:
    """Returns median pitch in semitones and mean cepstra of the voiced frames, (CEPSTRA,); empty if there are none."""
    _, _, spectrum = stft(waveform, sample_rate, nperseg=WINDOW, noverlap=WINDOW - HOP)
    power = np.abs(spectrum.T) ** 2
    pitch, confidence = _pitch(power, sample_rate)
    loud = power.sum(1) > 0.01 * power.sum(1).max()
    voiced = (confidence > 0.4) & loud
    if voiced.sum() < 3:
        return np.zeros(0)
    bank = mel_filter_bank(WINDOW // 2 + 1, MELS, 80.0, 0.475 * sample_rate, sample_rate)
    log = np.log(power[voiced] @ bank + 1e-5 * power.max())
    cepstra = dct(log, norm="ortho")[:, 1:CEPSTRA].mean(0)
    return np.concatenate([[np.median(12 * np.log2(pitch[voiced]))], cepstra])


def _pitch(power: Floats, sample_rate: int) -> tuple[Floats, Floats]:
    """Returns the pitch in hertz, (n,), and its confidence in [0, 1], (n,), of power spectra (n, bins).

    The pitch is the first strong peak of the autocorrelation.
    """
    correlation = np.fft.irfft(power)[:, : WINDOW // 2]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(WINDOW), 2 * WINDOW)) ** 2)[: WINDOW // 2]
    correlation = correlation / (correlation[:, :1] + 1e-12) / (window / window[0])
    shortest, longest = int(sample_rate / HIGHEST), min(int(sample_rate / LOWEST), WINDOW // 2 - 1)
    lags = correlation[:, shortest:longest]
    best = lags.max(1)
    inner = lags[:, 1:-1]
    is_peak = (inner >= lags[:, :-2]) & (inner >= lags[:, 2:]) & (inner > 0.85 * best[:, None])
    lag = shortest + 1 + is_peak.argmax(1)
    return sample_rate / lag, np.where(is_peak.any(1), best, 0.0)
