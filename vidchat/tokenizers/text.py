"""Text to ids: bytes, which need no download, or any tokenizer of the Hub."""

from __future__ import annotations

import hashlib
from typing import Protocol

from transformers import AutoTokenizer

from vidchat.registry import register
from vidchat.tokenizers.weights import TokenizerError


class TextTokenizer(Protocol):
    """What the data module and `infer.py` need of a text tokenizer."""

    vocabulary: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""

    def fingerprint(self) -> str:
        """A short hash of all that decides the ids."""


@register("bytes")
class ByteTokenizer:
    """UTF-8 bytes as ids."""

    vocabulary = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def fingerprint(self) -> str:
        return "bytes"


@register("hub_tokenizer")
class HubTokenizer:
    """A tokenizer of the Hub, e.g. `Qwen/Qwen3-0.6B`.

    Args:
        name: Its name on the Hub, or a local folder.

    Raises:
        TokenizerError: there is none, or it cannot be reached.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{name} holds no text tokenizer: {str(error).strip().splitlines()[0]}; give a folder with a "
                "tokenizer.json, or a name on the Hub such as Qwen/Qwen3-0.6B"
            ) from error
        self.vocabulary = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def fingerprint(self) -> str:
        """Of everything that decides ids (vocabulary, merges, what is done before), not of where it lies."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
