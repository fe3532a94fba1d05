"""Text to ids: bytes, which need no download, or any tokenizer of the Hub."""

from __future__ import annotations

import hashlib
from typing import Protocol

from transformers import AutoTokenizer


class TextTokenizer(Protocol):
    """What the data module and `infer.py` need of a text tokenizer."""

    vocabulary: int

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""

    def fingerprint(self) -> str:
        """A short hash of all that decides the ids."""


class ByteTokenizer:
    """UTF-8 bytes as ids."""

    vocabulary = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def fingerprint(self) -> str:
        return "bytes"


class HubTokenizer:
    """A tokenizer of the Hub, e.g. `Qwen/Qwen3-0.6B`.

    Args:
        name: Its name on the Hub, or a local folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tokenizer = AutoTokenizer.from_pretrained(name)
        self.vocabulary = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def fingerprint(self) -> str:
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        return hashlib.sha256(repr((self.name, vocabulary)).encode()).hexdigest()[:16]
