"""Dialogue coherence as in the paper: transcribes an answer, and finds the candidate with the nearest text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidchat.bench.clips import is_silent
from vidchat.bench.metric import BackendError, Column, Features, Metric
from vidchat.bench.pairs import Pair
from vidchat.bench.protocol import versions, weights_hash
from vidchat.data.media.read import Media

MAX_TOKENS = 224  # of one transcript


class Transcriber:
    """Transcribes with Whisper, greedily, in English by default.

    Args:
        name: Folder, or name on the Hub, such as `openai/whisper-large-v3`.
        device: Device of the model.
        language: Language of the speech.
    """

    def __init__(self, name: str, device: str = "cpu", language: str = "en") -> None:
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

        self.model: Any = load_pretrained(name, WhisperForConditionalGeneration).to(device).eval()
        self.feature_extractor: Any = load_pretrained(name, WhisperFeatureExtractor)
        self.tokenizer: Any = load_pretrained(name, WhisperTokenizer)
        self.device, self.language, self.name = device, language, name
        self._last: tuple[Media, str] | None = None

    def spec(self) -> Mapping[str, object]:
        return {"asr": f"{_short(self.name)} {weights_hash(self.model)}, greedy, {self.language}"}

    @torch.no_grad()
    def __call__(self, media: Media) -> str:
        """Returns the transcript of a clip; empty if the clip is silent."""
        if self._last is None or self._last[0] is not media:  # both text metrics ask for the same clip
            self._last = (media, "" if is_silent(media.waveform) else self._transcribe(media))
        return self._last[1]

    def _transcribe(self, media: Media) -> str:
        features = self.feature_extractor(media.waveform.numpy(), sampling_rate=media.sample_rate, return_tensors="pt")
        options = {"language": self.language, "task": "transcribe"} if self._is_multilingual() else {}
        output = self.model.generate(
            features.input_features.to(self.device), do_sample=False, num_beams=1, max_new_tokens=MAX_TOKENS, **options
        )
        return str(self.tokenizer.batch_decode(output, skip_special_tokens=True)[0]).strip()

    def _is_multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))


class NearestText(Metric):
    """Score of the candidate whose text is nearest to the transcript; an empty transcript scores 0.

    Args:
        transcriber: Transcriber, which metrics may share.
        device: Device of the text encoder.
    """

    dimension = "dialogue coherence"
    proxy = False
    needs_candidates = True
    turns = "speaking"

    def __init__(self, transcriber: Transcriber, device: str = "cpu") -> None:
        self.transcriber, self.device = transcriber, device

    def read(self, media: Media, truth: Media | None = None) -> Features:
        return {"text": np.array(self.transcriber(media))}

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Returns unit vectors, (n, D)."""

    def compare(self, generated: Features, truth: Features, reference: Features, pair: Pair) -> dict[str, float]:
        transcript, column = str(generated["text"]), self.columns[0].name
        if len(pair.candidates) < 2:
            return {column: float("nan")}
        if not transcript:
            return {column: 0.0}
        vectors = self.embed([transcript, *(candidate.text for candidate in pair.candidates)])
        return {column: pair.candidates[int((vectors[1:] @ vectors[0]).argmax())].score}


class NearestByClip(NearestText):
    """Nearest text by CLIP's text encoder, which reads at most 77 tokens of each text.

    Args:
        transcriber: Transcriber of the answers.
        name: Folder, or name on the Hub, such as `openai/clip-vit-large-patch14`.
        device: Device of the text encoder.
    """

    columns = (Column("coherence", "higher", worst=0.0),)

    def __init__(self, transcriber: Transcriber, name: str, device: str = "cpu") -> None:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        super().__init__(transcriber, device)
        self.model: Any = load_pretrained(name, CLIPTextModelWithProjection).to(device).eval()
        self.tokenizer: Any = load_pretrained(name, CLIPTokenizer)
        self.name = name

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"CLIP text {_short(self.name)}, cosine, first 77 tokens",
            "weights": weights_hash(self.model),
            **self.transcriber.spec(),
            "libraries": versions("transformers", "torch"),
        }

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        max_length = self.model.config.max_position_embeddings
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        vectors = self.model(**inputs.to(self.device)).text_embeds
        return torch.nn.functional.normalize(vectors, dim=-1).cpu()


class NearestBySentence(NearestText):
    """Nearest text by a sentence encoder: the mean of its last hidden states over the whole text.

    Args:
        transcriber: Transcriber of the answers.
        name: Folder, or name on the Hub, such as `sentence-transformers/all-mpnet-base-v2`.
        device: Device of the text encoder.
    """

    columns = (Column("coherence, sentence", "higher", worst=0.0),)

    def __init__(self, transcriber: Transcriber, name: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__(transcriber, device)
        self.model: Any = load_pretrained(name, AutoModel).to(device).eval()
        self.tokenizer: Any = load_pretrained(name, AutoTokenizer)
        self.name = name

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": f"sentence encoder {_short(self.name)}, mean of last states, cosine",
            "weights": weights_hash(self.model),
            **self.transcriber.spec(),
            "libraries": versions("transformers", "torch"),
        }

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        max_length = self.model.config.max_position_embeddings - 2
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        inputs = inputs.to(self.device)
        mask = inputs["attention_mask"][..., None]
        mean = (self.model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu()


def load_pretrained(name: str, kind: Any) -> Any:
    """Loads a model or a processor of transformers from a folder or the Hub; raises `BackendError`."""
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{name}: cannot be loaded as {kind.__name__} ({str(error).splitlines()[0]}); give a folder with it, or "
            "its name on the Hub where there is a network"
        ) from None


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]
