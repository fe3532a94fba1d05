"""Speech quality by DNSMOS P.835 (Reddy et al. 2022): signal, background, overall, 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vidchat.bench.clips import is_silent
from vidchat.bench.faces import onnx_session
from vidchat.bench.metric import Column, Features, Metric, need_file
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

RATE, LENGTH = 16000, int(9.01 * 16000)
# Published polynomials from the network's raw scores to listeners' scores, highest power first.
FITS = {
    "DNSMOS SIG": (-0.08397278, 1.22083953, 0.0052439),
    "DNSMOS BAK": (-0.13166888, 1.60915514, -0.39604546),
    "DNSMOS OVR": (-0.06766283, 1.11546468, 0.04602535),
}


class Dnsmos(Metric):
    """Mean score over windows of 9.01 s, one per second; a shorter clip is repeated to fill one. Silence scores 1.

    Args:
        path: File `sig_bak_ovr.onnx`.
    """

    dimension = "voice"
    columns = tuple(Column(name, "higher", digits=2, worst=1.0) for name in FITS)
    proxy = False
    turns = "speaking"

    def __init__(self, path: Path | str) -> None:
        self.path = need_file(path, "DNSMOS P.835, sig_bak_ovr.onnx")
        self.session = onnx_session(self.path)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "DNSMOS P.835, polynomial fit",
            "weights": file_hash(self.path),
            "libraries": versions("onnxruntime"),
        }

    def read(self, media: Media, truth: Media | None = None) -> Features:
        if media.sample_rate != RATE:
            raise ValueError(f"DNSMOS needs a sample rate of {RATE}, not {media.sample_rate}")
        if is_silent(media.waveform):
            return {"scores": np.ones(len(FITS))}
        audio = media.waveform.numpy()
        while len(audio) < LENGTH:
            audio = np.concatenate([audio, audio])
        last = int(len(audio) // RATE - LENGTH / RATE)
        windows = [audio[second * RATE : second * RATE + LENGTH] for second in range(last + 1)]
        name = self.session.get_inputs()[0].name
        raw = np.array(
            [self.session.run(None, {name: w[None].astype(np.float32)})[0][0] for w in windows if len(w) == LENGTH]
        )
        return {"scores": np.array([np.polyval(fit, raw[:, i]).mean() for i, fit in enumerate(FITS.values())])}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {name: float(score) for name, score in zip(FITS, generated["scores"], strict=True)}
