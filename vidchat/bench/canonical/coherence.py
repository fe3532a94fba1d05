"""Dialogue coherence as the paper has it: what is heard, and which candidate's text is nearest to it."""

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

LONGEST = 224  # tokens that Whisper may say of one clip


class Transcriber:
    """Transcribes with Whisper, greedily, in English by default.

    Args:
        name: Folder, or name on the Hub, such as `openai/whisper-large-v3`.
        device: Where it runs.
        language: Language of the speech.
    """

    def __init__(self, name: str, device: str = "cpu", language: str = "en") -> None:
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

        self.model: Any = loaded(name, WhisperForConditionalGeneration).to(device).eval()
        self.hear: Any = loaded(name, WhisperFeatureExtractor)
        self.tokens: Any = loaded(name, WhisperTokenizer)
        self.device, self.language, self.name = device, language, name
        self._last: tuple[Media, str] | None = None

    def spec(self) -> Mapping[str, object]:
        return {"asr": f"{_short(self.name)} {weights_hash(self.model)}, greedy, {self.language}"}

    @torch.no_grad()
    def __call__(self, media: Media) -> str:
        """What is said; nothing if the clip is silent."""
        if self._last is None or self._last[0] is not media:  # both text measures ask for the same clip
            self._last = (media, "" if is_silent(media.waveform) else self._transcribe(media))
        return self._last[1]

    def _transcribe(self, media: Media) -> str:
        heard = self.hear(media.waveform.numpy(), sampling_rate=media.sample_rate, return_tensors="pt")
        options = {"language": self.language, "task": "transcribe"} if self._is_multilingual() else {}
        said = self.model.generate(
            heard.input_features.to(self.device), do_sample=False, num_beams=1, max_new_tokens=LONGEST, **options
        )
        return str(self.tokens.batch_decode(said, skip_special_tokens=True)[0]).strip()

    def _is_multilingual(self) -> bool:
        return bool(getattr(self.model.generation_config, "is_multilingual", False))


class NearestText(Metric):
    """What the candidate is worth whose text is nearest to what was heard; a clip in which nothing is heard gets 0.

    Args:
        transcriber: What hears; measures may share one.
        device: Where the text encoder runs.
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
        """(n, D) of length 1."""

    def compare(self, made: Features, true: Features, reference: Features, pair: Pair) -> dict[str, float]:
        said, column = str(made["text"]), self.columns[0].name
        if len(pair.candidates) < 2:
            return {column: float("nan")}
        if not said:
            return {column: 0.0}
        vectors = self.embed([said, *(candidate.text for candidate in pair.candidates)])
        return {column: pair.candidates[int((vectors[1:] @ vectors[0]).argmax())].worth}


class NearestByClip(NearestText):
    """Nearest by CLIP's text encoder, which reads no more than 77 tokens of each text.

    Args:
        transcriber: What hears.
        name: Folder, or name on the Hub, such as `openai/clip-vit-large-patch14`.
        device: Where it runs.
    """

    columns = (Column("coherence", "higher", worst=0.0),)

    def __init__(self, transcriber: Transcriber, name: str, device: str = "cpu") -> None:
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        super().__init__(transcriber, device)
        self.model: Any = loaded(name, CLIPTextModelWithProjection).to(device).eval()
        self.tokens: Any = loaded(name, CLIPTokenizer)
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
        longest = self.model.config.max_position_embeddings
        given = self.tokens(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        vectors = self.model(**given.to(self.device)).text_embeds
        return torch.nn.functional.normalize(vectors, dim=-1).cpu()


class NearestBySentence(NearestText):
    """Nearest by a sentence encoder: mean of its last states, whole texts.

    Args:
        transcriber: What hears.
        name: Folder, or name on the Hub, such as `sentence-transformers/all-mpnet-base-v2`.
        device: Where it runs.
    """

    columns = (Column("coherence, sentence", "higher", worst=0.0),)

    def __init__(self, transcriber: Transcriber, name: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        super().__init__(transcriber, device)
        self.model: Any = loaded(name, AutoModel).to(device).eval()
        self.tokens: Any = loaded(name, AutoTokenizer)
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
        longest = self.model.config.max_position_embeddings - 2
        given = self.tokens(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        given = given.to(self.device)
        mask = given["attention_mask"][..., None]
        mean = (self.model(**given).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).cpu()


def loaded(name: str, kind: Any) -> Any:
    """A thing of transformers from a folder or the Hub; raises `BackendError`."""
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{name}: cannot be loaded as {kind.__name__} ({str(error).splitlines()[0]}); give a folder with it, or "
            "its name on the Hub where there is a network"
        ) from None


def _short(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]
