"""Quality of an audio codec's round trip, beside low-passes and silence: a table and JSON.

    python benchmarks/audio_codec.py --data outputs/data/speech --split test
    python benchmarks/audio_codec.py --data FOLDER_OF_MP4S --codec checkpoints/demo/audio_codec

Metrics: the spectral distances `stft` and `mel` that training minimises; intelligibility by STOI (Taal et al. 2011, "An
algorithm for intelligibility prediction of time-frequency weighted noisy speech", 1 = as intelligible as the original);
the share of frames with the right pitch, to a semitone, where both waveforms are voiced, and the share of frames where
they agree on voicing; the codes in use in each codebook and their perplexity; the speed of the stream in pushes of 160
ms.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.signal import resample_poly
from torch import Tensor

from vidchat.data.folder import MANIFESTS, read_dialogues
from vidchat.data.media.read import MediaError, read_clip
from vidchat.dialogue import Clip
from vidchat.tokenizers.quantizer import code_use
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training.spectral import SpectralDistance, low_pass


def read_waveforms(root: Path, split: str, limit: int, codec: StftCodec) -> list[Tensor]:
    """Returns the waveforms (1, n*hop) of a split of a folder data set, or of all mp4 files in a plain folder."""
    if any((root / name).is_file() for name in MANIFESTS):
        clips = [turn.clip for dialogue in read_dialogues(root) if dialogue.split == split for turn in dialogue.turns]
    else:
        clips = [Clip(path, speaker=path.stem) for path in sorted(root.glob("*.mp4"))]
    waveforms = []
    for clip in clips[:limit]:
        try:
            waveform = read_clip(clip, fps=25, size=(16, 16), sample_rate=codec.sample_rate).waveform
        except MediaError as error:
            print(f"skipped: {error}")
            continue
        waveforms.append(waveform[None, : len(waveform) // codec.hop * codec.hop])
    return waveforms


def stoi(output: Tensor, target: Tensor, sample_rate: int) -> float:
    """Returns the STOI of a waveform (samples,): the mean correlation of short-time envelopes in 15 third-octave bands.

    At 10 kHz, frames of 256 with hop 128, transformed by 512; segments of 30 frames (384 ms); frames more than 40 dB
    below the loudest of the target are left out of both.
    """
    x, y = (torch.from_numpy(resample_poly(s.double().numpy(), 10000, sample_rate)) for s in (target, output))
    window = torch.hann_window(258, dtype=torch.float64)[1:-1]
    x_frames, y_frames = (s.unfold(0, 256, 128) * window for s in (x, y))
    energy = 20 * torch.log10(x_frames.norm(dim=1) + 1e-12)
    loud = energy > energy.max() - 40
    centres = 150 * 2 ** (torch.arange(15) / 3)
    bins = torch.arange(257) * 10000 / 512
    bands = ((bins >= centres[:, None] * 2 ** (-1 / 6)) & (bins < centres[:, None] * 2 ** (1 / 6))).double()
    x_bands, y_bands = ((torch.fft.rfft(s[loud], 512).abs().square() @ bands.T).sqrt() for s in (x_frames, y_frames))
    if len(x_bands) < 30:
        return float("nan")
    a, b = (s.unfold(0, 30, 1) for s in (x_bands, y_bands))  # (segments, bands, 30)
    b = b * a.norm(dim=2, keepdim=True) / (b.norm(dim=2, keepdim=True) + 1e-12)
    b = torch.minimum(b, a * (1 + 10 ** (15 / 20)))
    a, b = (s - s.mean(2, keepdim=True) for s in (a, b))
    return float(((a * b).sum(2) / (a.norm(dim=2) * b.norm(dim=2) + 1e-12)).mean())


def pitch(waveform: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Returns the pitch in hertz and the voicing (0..1) of a waveform (samples,) every 10 ms.

    The pitch is the first strong peak of the autocorrelation between 60 and 400 Hz.
    """
    size, hop = sample_rate // 20, sample_rate // 100
    frames = waveform.unfold(0, size, hop)
    frames = (frames - frames.mean(1, keepdim=True)) * torch.hann_window(size)
    spectrum = torch.fft.rfft(frames, 2 * size).abs().square()
    correlation = torch.fft.irfft(spectrum)[:, :size]
    own = torch.hann_window(size)
    taper = torch.fft.irfft(torch.fft.rfft(own, 2 * size).abs().square())[:size]
    correlation = correlation / (correlation[:, :1] + 1e-9) / (taper / taper[0]).clamp(min=0.05)
    shortest, longest = sample_rate // 400, sample_rate // 60
    lags = correlation[:, shortest:longest]
    best = lags.max(1).values
    is_peak = (lags >= F.max_pool1d(lags[:, None], 3, 1, 1)[:, 0]) & (lags > 0.85 * best[:, None])
    lag = shortest + is_peak.float().argmax(1)
    loud = frames.norm(dim=1) > 0.05 * frames.norm(dim=1).max()
    return sample_rate / lag, best * loud


def measure(original: Tensor, output: Tensor, distance: SpectralDistance, sample_rate: int) -> dict[str, float]:
    """Returns the metrics of one waveform (1, samples) and its round trip."""
    stft, mel = distance(output, original)
    hertz, voiced = pitch(original[0], sample_rate)
    hertz_out, voiced_out = pitch(output[0], sample_rate)
    both = (voiced > 0.6) & (voiced_out > 0.6)
    right = (12 * torch.log2(hertz_out / hertz)).abs()[both] < 1
    return {
        "stft": float(stft),
        "mel": float(mel),
        "stoi": stoi(output[0], original[0], sample_rate),
        "pitch right": float(right.float().mean()),
        "voicing": float(((voiced > 0.6) == (voiced_out > 0.6)).float().mean()),
    }


def stream_speed(codec: StftCodec, codes: Tensor) -> float:
    """Returns the seconds of audio decoded per second, with codes (1, n, K) pushed 8 codec frames at a time."""
    stream = codec.stream()
    began = time.perf_counter()
    for chunk in codes.split(8, 1):
        stream.push(chunk)
    return codes.shape[1] * codec.hop / codec.sample_rate / (time.perf_counter() - began)


@torch.no_grad()
def run(codec: StftCodec, waveforms: list[Tensor]) -> dict[str, dict[str, float]]:
    """Returns the table as row -> column -> mean over the waveforms."""
    rate, distance = codec.sample_rate, SpectralDistance(codec.sample_rate)
    all_codes = [codec.encode(waveform) for waveform in waveforms]
    outputs = {
        "codec": [codec.decode(codes) for codes in all_codes],
        "4 kHz low-pass": [low_pass(waveform, rate, 4000) for waveform in waveforms],
        "2 kHz low-pass": [low_pass(waveform, rate, 2000) for waveform in waveforms],
        "silence": [torch.zeros_like(waveform) for waveform in waveforms],
    }
    table = {}
    for name, results in outputs.items():
        rows = [measure(a, b, distance, rate) for a, b in zip(waveforms, results, strict=True)]
        columns = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
        table[name] = {key: float(values.nanmean()) for key, values in columns.items()}
    used, perplexity = code_use(torch.cat(all_codes, 1), codec.vocabulary)
    for k in range(codec.codebooks):
        table[f"codebook {k}"] = {"used": float(used[k]), "perplexity": float(perplexity[k])}
    table["stream"] = {"x real time": stream_speed(codec, torch.cat(all_codes, 1)[:, :1000])}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder data set, or a folder of mp4 files")
    parser.add_argument("--split", default="test", help="split of a folder data set")
    parser.add_argument("--codec", type=Path, default=Path("checkpoints/demo/audio_codec"))
    parser.add_argument("--limit", type=int, default=60, help="largest number of clips")
    parser.add_argument("--json", type=Path, help="file for the table as JSON")
    arguments = parser.parse_args()
    codec = StftCodec.load(arguments.codec)
    speech = read_waveforms(arguments.data, arguments.split, arguments.limit, codec)
    table = run(codec, speech)
    seconds = sum(waveform.shape[1] for waveform in speech) / codec.sample_rate
    print(f"{len(speech)} clips, {seconds:.0f} s, codec {codec.fingerprint()}")
    for row, columns in table.items():
        print(f"{row:16}", "  ".join(f"{name} {value:.3f}" for name, value in columns.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
