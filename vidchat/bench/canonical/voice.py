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

# Parameters of WavLM that wav2vec 2.0 does not have.
RENAMED = (
    (r"self_attn\.grep_linear\.", "attention.gru_rel_pos_linear."),
    (r"self_attn\.grep_a$", "attention.gru_rel_pos_const"),
    (r"self_attn\.relative_attention_bias\.", "attention.rel_attn_embed."),
    *FAIRSEQ,
)
SHORTEST = 8000  # samples; shorter clips leave x-vectors no frame
INSIDE = "feature_extract.model."  # prefix of the names of WavLM's parameters


class SpeakerSimilarity(Metric):
    """Cosine similarity of the speaker embeddings of the generated and the true answer."""

    dimension = "voice"
    turns = "speaking"
    columns = (Column("SIM-o", "higher", worst=-1.0),)
    proxy = False

    def __init__(self, device: str) -> None:
        self.device = device

    def embed(self, waveform: Tensor) -> Tensor:
        """Maps a waveform (n,) at 16 kHz to an embedding (D,)."""
        raise NotImplementedError

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        if is_silent(media.waveform) or len(media.waveform) < SHORTEST:
            return {"voice": np.zeros(0, np.float32)}
        return {"voice": self.embed(media.waveform.to(self.device)).float().cpu().numpy()}

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        if not (len(generated["voice"]) and len(truth["voice"])):
            return {"SIM-o": float("nan")}  # a silent or very short clip has no voice to compare
        return {"SIM-o": float(cosine(generated["voice"], truth["voice"]))}


class WavLmEcapa(SpeakerSimilarity):
    """SIM-o as speech papers report it: `wavlm_large_finetune.pth` of UniSpeech's speaker verification.

    Args:
        path: Checkpoint.
        device: Device of the network.
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


class XVector(SpeakerSimilarity):
    """A speaker model of transformers, such as `microsoft/wavlm-base-plus-sv`: on another scale than SIM-o.

    Args:
        name: Folder, or name on the Hub.
        device: Device of the network.
    """

    columns = (Column("SIM, x-vector", "higher", worst=-1.0),)

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

        from vidchat.bench.canonical.coherence import load_pretrained

        super().__init__(device)
        self.name = name
        self.model: Any = load_pretrained(name, AutoModelForAudioXVector).to(device).eval()
        self.feature_extractor: Any = load_pretrained(name, AutoFeatureExtractor)

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"x-vector {self.name.rstrip('/').rsplit('/', 1)[-1]}, cosine to the true answer",
            "weights": weights_hash(self.model),
            "libraries": versions("transformers", "torch"),
        }

    def embed(self, waveform: Tensor) -> Tensor:
        inputs = self.feature_extractor(waveform.cpu().numpy(), sampling_rate=16000, return_tensors="pt").to(
            self.device
        )
        return self.model(**inputs).embeddings[0]

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        return {"SIM, x-vector": super().compare(generated, truth, reference, pair)["SIM-o"]}


LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": False,
}  # fmt: skip
