"""Perceptual distances of two waveforms: spectra at several resolutions, as losses and as metrics.

Phases are not compared: waveforms with the same spectra at every resolution sound the same, and no codec of 1.6 kbit/s
keeps the phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

QUIETEST = 1e-2
"""Root mean square of the magnitudes of a waveform at about -60 dB."""


def magnitude(waveform: Tensor, size: int) -> Tensor:
    """Returns the magnitude spectrum (B, size//2 + 1, n) of a waveform (B, samples); Hann windows, hop size/4."""
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform.float(), size, size // 4, window=window, pad_mode="constant", return_complex=True)
    # Square root with a floor, since abs() has no useful gradient at zero.
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=1e-10).sqrt()


class SpectralDistance(nn.Module):
    """Distances `stft` and `mel` of two waveforms, each the mean over window sizes.

    `stft` is spectral convergence + L1 of log magnitudes: Parallel WaveGAN (Yamamoto et al. 2020, arXiv 1910.11480,
    equations 3 to 6). `mel` is L1 of log mel spectra with more bands the longer the window: the mel reconstruction loss
    of DAC (Kumar et al. 2023, arXiv 2306.06546, section 3.4). Both are 0 for equal spectra.
    """

    def __init__(
        self,
        sample_rate: int,
        sizes: Sequence[int] = (256, 512, 1024, 2048),
        bands: Sequence[int] = (20, 40, 80, 160),
        floor: float = 1e-3,
    ) -> None:
        """
        Args:
            sample_rate: Samples per second.
            sizes: Window sizes in samples.
            bands: Number of mel bands for each window size.
            floor: Constant added to magnitudes before the logarithm; smaller magnitudes are inaudible.
        """
        super().__init__()
        self.sizes, self.floor = tuple(sizes), floor
        for size, count in zip(sizes, bands, strict=True):
            self.register_buffer(f"bank_{size}", mel_bank(sample_rate, size, count), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the scalar distances `stft` and `mel` of two waveforms (B, samples)."""
        pairs = [self._at(size, output, target) for size in self.sizes]
        stft, mel = zip(*pairs, strict=True)
        return torch.stack(stft).mean(), torch.stack(mel).mean()

    def _at(self, size: int, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        bank = getattr(self, f"bank_{size}")
        a, b = magnitude(output, size), magnitude(target, size)
        # A ratio per clip, so that a step's loss does not depend on how its clips are split over batches and ranks.
        # The denominator is at least that of -60 dB: a silent clip must not outweigh all others.
        quietest = QUIETEST * b[0].numel() ** 0.5
        convergence = ((a - b).norm(dim=(1, 2)) / b.norm(dim=(1, 2)).clamp(min=quietest)).mean()
        mel = (self._log(bank @ a) - self._log(bank @ b)).abs().mean()
        return convergence + (self._log(a) - self._log(b)).abs().mean(), mel

    def _log(self, spectrum: Tensor) -> Tensor:
        return (spectrum + self.floor).log()


def mel_bank(sample_rate: int, size: int, bands: int) -> Tensor:
    """Returns triangular filters (bands, size//2 + 1), centres evenly spaced in mel from 0 to half the sample rate."""
    top = 2595 * torch.log10(torch.tensor(1 + sample_rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, 1, bands + 2) * top / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, size // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bank = torch.minimum(rising, falling).clamp(min=0)
    # A band narrower than a bin would be empty: it takes the bin nearest its centre.
    nearest = (frequencies - edges[1:-1, None]).abs().argmin(1)
    empty = bank.sum(1) == 0
    bank[empty, nearest[empty]] = 1.0
    return bank


def low_pass(waveform: Tensor, sample_rate: int, cutoff: float) -> Tensor:
    """Returns a waveform (B, samples) without frequencies above `cutoff` hertz, a baseline for a codec."""
    spectrum = torch.fft.rfft(waveform)
    frequencies = torch.fft.rfftfreq(waveform.shape[1], 1 / sample_rate, device=waveform.device)
    return torch.fft.irfft(spectrum * (frequencies <= cutoff), n=waveform.shape[1])
