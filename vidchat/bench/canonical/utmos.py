"""Naturalness of speech by UTMOS (Saeki et al. 2022), the strong learner without phonemes, 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vidchat.bench.canonical.published_weights import FAIRSEQ, read_weights, renamed
from vidchat.bench.clips import is_silent
from vidchat.bench.metric import BackendError, Column, Features, Metric, need_file
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

RATE, SHORTEST = 16000, 400  # samples that wav2vec 2.0 hears at least
INSIDE = "wav2vec2."  # where the file keeps wav2vec 2.0


class Utmos(Metric):
    """Mean over a clip of the score of every 20 ms, each clip alone, as padding shifts it. Silence scores 1.

    Args:
        path: File `utmos22_strong_step7459_v1.pt`, the published checkpoint as SpeechMOS repacked it.
        device: Device of the network.
        config: Configuration of the wav2vec 2.0 inside; the base model by default.
    """

    dimension = "voice"
    columns = (Column("UTMOS", "higher", digits=2, worst=1.0),)
    proxy = False
    turns = "speaking"

    def __init__(self, path: Path | str, device: str = "cpu", config: Any = None) -> None:
        self.path = need_file(path, "UTMOS, utmos22_strong_step7459_v1.pt of SpeechMOS")
        self.device = device
        self.net = load_utmos(self.path, config).to(device).eval()

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "UTMOS22 strong learner without phonemes",
            "weights": file_hash(self.path),
            "libraries": versions("transformers", "torch"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        if media.sample_rate != RATE:
            raise ValueError(f"UTMOS hears {RATE} samples a second, not {media.sample_rate}")
        if is_silent(media.waveform) or len(media.waveform) < SHORTEST:
            return {"score": np.ones(1)}
        return {"score": self.net(media.waveform[None].to(self.device)).cpu().numpy()}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"UTMOS": float(made["score"][0])}


class Network(nn.Module):
    """wav2vec 2.0, and on its states, beside who judges and what kind of data it is, an LSTM and a score.

    Args:
        state: Published tensors, whose shapes give the widths.
        config: Configuration of wav2vec 2.0.
    """

    def __init__(self, state: Mapping[str, Tensor], config: Any) -> None:
        from transformers import Wav2Vec2Model

        super().__init__()
        self.wav2vec2: Any = Wav2Vec2Model(config)
        self.domain_emb = nn.Parameter(torch.zeros_like(state["domain_emb"]))
        self.judge_emb = nn.Parameter(torch.zeros_like(state["judge_emb"]))
        given, hidden = state["blstm.weight_ih_l0"].shape[1], state["blstm.weight_hh_l0"].shape[1]
        self.blstm = nn.LSTM(given, hidden, batch_first=True, bidirectional=True)
        middle = len(state["projection.0.weight"])
        self.projection = nn.Sequential(nn.Linear(2 * hidden, middle), nn.ReLU(), nn.Linear(middle, 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, n) in [-1, 1] at 16 kHz to (B,)."""
        states = self.wav2vec2(waveform).last_hidden_state
        about = torch.cat([self.domain_emb, self.judge_emb], dim=1)[:, None].expand(*states.shape[:2], -1)
        scores = self.projection(self.blstm(torch.cat([states, about], dim=2))[0])
        return scores.mean((1, 2)) * 2 + 3


def load_utmos(path: Path, config: Any = None) -> Network:
    """The network with published weights.

    Raises:
        BackendError: The file holds none.
    """
    from transformers import Wav2Vec2Config

    state = {
        INSIDE + renamed(name.removeprefix(INSIDE), FAIRSEQ) if name.startswith(INSIDE) else name: value
        for name, value in read_weights(path).items()
    }
    try:
        net = Network(state, Wav2Vec2Config() if config is None else config)
        net.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise BackendError(f"{path}: holds no UTMOS ({what}); give utmos22_strong_step7459_v1.pt") from None
    return net
