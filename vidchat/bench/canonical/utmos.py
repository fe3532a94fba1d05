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

RATE, SHORTEST = 16000, 400  # sample rate; fewest samples for wav2vec 2.0
PREFIX = "wav2vec2."  # of the names of wav2vec 2.0's parameters


class Utmos(Metric):
    """Mean score over a clip, one per 20 ms; silence scores 1. Clips are not batched, since padding changes scores.

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
            raise ValueError(f"UTMOS needs a sample rate of {RATE}, not {media.sample_rate}")
        if is_silent(media.waveform) or len(media.waveform) < SHORTEST:
            return {"score": np.ones(1)}
        return {"score": self.net(media.waveform[None].to(self.device)).cpu().numpy()}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"UTMOS": float(generated["score"][0])}


class Network(nn.Module):
    """wav2vec 2.0, then an LSTM and a linear head on its states and the embeddings of judge and domain.

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
        inputs, hidden = state["blstm.weight_ih_l0"].shape[1], state["blstm.weight_hh_l0"].shape[1]
        self.blstm = nn.LSTM(inputs, hidden, batch_first=True, bidirectional=True)
        middle = len(state["projection.0.weight"])
        self.projection = nn.Sequential(nn.Linear(2 * hidden, middle), nn.ReLU(), nn.Linear(middle, 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """Maps waveforms (B, n) in [-1, 1] at 16 kHz to scores (B,)."""
        states = self.wav2vec2(waveform).last_hidden_state
        context = torch.cat([self.domain_emb, self.judge_emb], dim=1)[:, None].expand(*states.shape[:2], -1)
        scores = self.projection(self.blstm(torch.cat([states, context], dim=2))[0])
        return scores.mean((1, 2)) * 2 + 3


def load_utmos(path: Path, config: Any = None) -> Network:
    """Loads the network with published weights.

    Raises:
        BackendError: The file holds no UTMOS.
    """
    from transformers import Wav2Vec2Config

    state = {
        PREFIX + renamed(name.removeprefix(PREFIX), FAIRSEQ) if name.startswith(PREFIX) else name: value
        for name, value in read_weights(path).items()
    }
    try:
        net = Network(state, Wav2Vec2Config() if config is None else config)
        net.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)[:200]
        raise BackendError(f"{path}: holds no UTMOS ({what}); give utmos22_strong_step7459_v1.pt") from None
    return net
