"""A stand-in for SIM-o: how alike two voices are in pitch and in their mean spectrum."""

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
LOWEST, HIGHEST = 60.0, 400.0  # hertz, of the pitch
SEMITONES, SPECTRUM = 8.0, 2.0  # differences that bring the likeness down to 1/e: between those of one voice and of two


class PitchAndTimbre(Metric):
    """exp(-(pitch difference / 8 semitones) - (difference of mean cepstra / 2)) to the truth.

    It tells registers and timbres apart; a microphone, a room or a codec counts as a voice too, which SIM-o forgives.
    """

    dimension = "voice"
    doubt = "A microphone or a room counts as a voice; two people of one pitch and timbre are one."
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

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        a, b = made["voice"], true["voice"]
        if not (len(a) and len(b)):
            return {"SIM-o": float("nan")}  # what is silent has no voice that could be compared
        pitch = abs(a[0] - b[0]) / SEMITONES
        spectrum = float(np.sqrt(np.mean((a[1:] - b[1:]) ** 2))) / SPECTRUM
        return {"SIM-o": float(np.exp(-pitch - spectrum))}


def _voice(waveform: Floats, sample_rate: int) -> Floats:
    """(CEPSTRA,): median pitch in semitones, and mean cepstra, of the frames with a pitch; empty if there are none."""
    _, _, spectrum = stft(waveform, sample_rate, nperseg=WINDOW, noverlap=WINDOW - HOP)
    power = np.abs(spectrum.T) ** 2
    pitch, sure = _pitch(power, sample_rate)
    loud = power.sum(1) > 0.01 * power.sum(1).max()
    voiced = (sure > 0.4) & loud
    if voiced.sum() < 3:
        return np.zeros(0)
    bank = mel_filter_bank(WINDOW // 2 + 1, MELS, 80.0, 0.475 * sample_rate, sample_rate)
    log = np.log(power[voiced] @ bank + 1e-5 * power.max())
    cepstra = dct(log, norm="ortho")[:, 1:CEPSTRA].mean(0)
    return np.concatenate([[np.median(12 * np.log2(pitch[voiced]))], cepstra])


def _pitch(power: Floats, sample_rate: int) -> tuple[Floats, Floats]:
    """Pitch in hertz and how sure it is (0..1) of frames (n, bins): the first strong peak of the autocorrelation."""
    correlation = np.fft.irfft(power)[:, : WINDOW // 2]
    own = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(WINDOW), 2 * WINDOW)) ** 2)[: WINDOW // 2]
    correlation = correlation / (correlation[:, :1] + 1e-12) / (own / own[0])
    shortest, longest = int(sample_rate / HIGHEST), min(int(sample_rate / LOWEST), WINDOW // 2 - 1)
    lags = correlation[:, shortest:longest]
    best = lags.max(1)
    inner = lags[:, 1:-1]
    is_peak = (inner >= lags[:, :-2]) & (inner >= lags[:, 2:]) & (inner > 0.85 * best[:, None])
    lag = shortest + 1 + is_peak.argmax(1)
    return sample_rate / lag, np.where(is_peak.any(1), best, 0.0)
