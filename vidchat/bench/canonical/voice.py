"""Voice by speaker embeddings: SIM-o's WavLM-large with an ECAPA-TDNN head (UniSpeech), or a model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.canonical.ecapa import Ecapa
from vidchat.bench.canonical.published_weights import FAIRSEQ, read_weights, renamed
from vidchat.bench.clips import is_silent
from vidchat.bench.metric import BackendError, Column, Features, Metric, cosine, need_file
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import file_hash, versions, weights_hash
from vidchat.data.media.read import Media

# WavLM's parts that wav2vec 2.0 has not.
RENAMED = (
    (r"self_attn\.grep_linear\.", "attention.gru_rel_pos_linear."),
    (r"self_attn\.grep_a$", "attention.gru_rel_pos_const"),
    (r"self_attn\.relative_attention_bias\.", "attention.rel_attn_embed."),
    *FAIRSEQ,
)
SHORTEST = 8000  # samples; in less, x-vectors have no frame to look at
INSIDE = "feature_extract.model."  # where the checkpoint keeps WavLM


class SpeakerLikeness(Metric):
    """Cosine of the speaker embeddings of the generated and the true answer."""

    dimension = "voice"
    turns = "speaking"
    columns = (Column("SIM-o", "higher", worst=-1.0),)
    proxy = False

    def __init__(self, device: str) -> None:
        self.device = device

    def embed(self, waveform: Tensor) -> Tensor:
        """(n,) at 16 kHz to (D,)."""
        raise NotImplementedError

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        if is_silent(media.waveform) or len(media.waveform) < SHORTEST:
            return {"voice": np.zeros(0, np.float32)}
        return {"voice": self.embed(media.waveform.to(self.device)).float().cpu().numpy()}

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        if not (len(made["voice"]) and len(true["voice"])):
            return {"SIM-o": float("nan")}  # what is silent, or over at once, has no voice that could be compared
        return {"SIM-o": float(cosine(made["voice"], true["voice"]))}


class WavLmEcapa(SpeakerLikeness):
    """SIM-o as speech papers report it: `wavlm_large_finetune.pth` of UniSpeech's speaker verification.

    Args:
        path: The checkpoint.
        device: Where it runs.
        config: Configuration of the WavLM inside; WavLM-large by default.
    """

    def __init__(self, path: Path | str, device: str = "cpu", config: Any = None) -> None:
        from transformers import WavLMConfig, WavLMModel

        super().__init__(device)
        self.path = need_file(path, "UniSpeech's wavlm_large_finetune.pth")
        wavlm: Any = WavLMModel(WavLMConfig.from_dict(LARGE) if config is None else config)
        state = read_weights(self.path, "model")
        inner = {
            renamed(name.removeprefix(INSIDE), RENAMED): value
            for name, value in state.items()
            if name.startswith(INSIDE)
        }
        outer = {name: value for name, value in state.items() if not name.startswith(("feature_extract.", "loss_"))}
        self.head = Ecapa(wavlm.config.num_hidden_layers + 1, wavlm.config.hidden_size)
        try:
            missing = wavlm.load_state_dict(inner, strict=False).missing_keys
            if set(missing) - {"masked_spec_embed"}:
                raise RuntimeError(f"it lacks {missing[0]}")
            self.head.load_state_dict(outer)
        except RuntimeError as error:
            raise BackendError(f"{path}: holds no WavLM with an ECAPA-TDNN head ({str(error)[:200]})") from None
        self.wavlm = wavlm.to(device).eval()
        self.head = self.head.to(device).eval()

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "WavLM-large + ECAPA-TDNN (UniSpeech), cosine to the true answer",
            "weights": file_hash(self.path),
            "libraries": versions("transformers", "torch"),
        }

    def embed(self, waveform: Tensor) -> Tensor:
        normal = F.layer_norm(waveform, waveform.shape)[None]
        states = self.wavlm(normal, output_hidden_states=True).hidden_states
        return self.head(torch.stack(states, dim=1))[0]


class XVector(SpeakerLikeness):
    """A speaker model of transformers, such as `microsoft/wavlm-base-plus-sv`: another scale than SIM-o's.

    Args:
        name: A folder, or a name on the Hub.
        device: Where it runs.
    """

    columns = (Column("SIM, x-vector", "higher", worst=-1.0),)

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        from vidchat.bench.canonical.coherence import loaded

        super().__init__(device)
        self.name = name
        self.model: Any = loaded(name, AutoModelForAudioXVector).to(device).eval()
        self.hear: Any = loaded(name, AutoFeatureExtractor)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"x-vector {self.name.rstrip('/').rsplit('/', 1)[-1]}, cosine to the true answer",
            "weights": weights_hash(self.model),
            "libraries": versions("transformers", "torch"),
        }

    def embed(self, waveform: Tensor) -> Tensor:
        given = self.hear(waveform.cpu().numpy(), sampling_rate=16000, return_tensors="pt").to(self.device)
        return self.model(**given).embeddings[0]

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"SIM, x-vector": super().compare(made, true, reference, pair)["SIM-o"]}


LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": False,
}  # fmt: skip
