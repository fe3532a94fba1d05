"""How good an audio codec's round trip is, beside low-passes and silence: a table, and JSON.

    python benchmarks/audio_codec.py --data outputs/data/speech --split test
    python benchmarks/audio_codec.py --data FOLDER_OF_MP4S --codec checkpoints/demo/audio_codec

Measured: the spectral distances `stft` and `mel` that training minimises; intelligibility by STOI (Taal et al. 2011,
"An algorithm for intelligibility prediction of time-frequency weighted noisy speech", 1 = as intelligible as the
original); the share of frames whose pitch is right to a semitone where both sounds are voiced, and how often they agree
on being voiced; codes in use in each codebook and their perplexity; speed of the stream, pushed by 160 ms.
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


def waveforms(root: Path, split: str, limit: int, codec: StftCodec) -> list[Tensor]:
    """Waveforms (1, n*hop) of a folder data set's split, or of every mp4 of a plain folder."""
    if any((root / name).is_file() for name in MANIFESTS):
        clips = [turn.clip for dialogue in read_dialogues(root) if dialogue.split == split for turn in dialogue.turns]
    else:
        clips = [Clip(path, speaker=path.stem) for path in sorted(root.glob("*.mp4"))]
    found = []
    for clip in clips[:limit]:
        try:
            waveform = read_clip(clip, fps=25, size=(16, 16), sample_rate=codec.sample_rate).waveform
        except MediaError as error:
            print(f"skipped: {error}")
            continue
        found.append(waveform[None, : len(waveform) // codec.hop * codec.hop])
    return found


def stoi(output: Tensor, target: Tensor, sample_rate: int) -> float:
    """STOI of a waveform (samples,): mean correlation of short-time envelopes in 15 third-octave bands.

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
    """Pitch in hertz and how voiced (0..1), per 10 ms: the first strong peak of the autocorrelation, 60 to 400 Hz."""
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
    """Every number for one waveform (1, samples) and what became of it."""
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
    """Seconds of audio per second, codes (1, n, K) pushed by 8 frames."""
    stream = codec.stream()
    began = time.perf_counter()
    for part in codes.split(8, 1):
        stream.push(part)
    return codes.shape[1] * codec.hop / codec.sample_rate / (time.perf_counter() - began)


@torch.no_grad()
def run(codec: StftCodec, waveforms: list[Tensor]) -> dict[str, dict[str, float]]:
    """The table: row -> column -> mean over the waveforms."""
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
    parser.add_argument("--split", default="test", help="of a folder data set")
    parser.add_argument("--codec", type=Path, default=Path("checkpoints/demo/audio_codec"))
    parser.add_argument("--limit", type=int, default=60, help="at most so many clips")
    parser.add_argument("--json", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    codec = StftCodec.load(arguments.codec)
    speech = waveforms(arguments.data, arguments.split, arguments.limit, codec)
    table = run(codec, speech)
    seconds = sum(waveform.shape[1] for waveform in speech) / codec.sample_rate
    print(f"{len(speech)} clips, {seconds:.0f} s, codec {codec.fingerprint()}")
    for row, columns in table.items():
        print(f"{row:16}", "  ".join(f"{name} {value:.3f}" for name, value in columns.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
