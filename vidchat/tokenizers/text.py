"""Text tokenizers: UTF-8 bytes, which need no download, or any tokenizer of the Hub."""

from __future__ import annotations

import hashlib
from typing import Protocol

from transformers import AutoTokenizer

from vidchat.registry import register
from vidchat.tokenizers.weights import TokenizerError


class TextTokenizer(Protocol):
    """The interface of a text tokenizer.

    Attributes:
        vocabulary: Number of ids.
    """

    vocabulary: int

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without special tokens."""

    def fingerprint(self) -> str:
        """Returns a short hash of everything that determines the ids."""


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
    """A tokenizer of transformers, e.g. that of `Qwen/Qwen3-0.6B`.

    Args:
        name: Name on the Hub, or a local folder.

    Raises:
        TokenizerError: there is no such tokenizer, or the Hub cannot be reached.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            if not self.encode("a"):  # transformers makes an empty one for a language model without its files
                raise ValueError("the folder of a language model without its tokenizer")
        except (OSError, ValueError) as error:
            raise TokenizerError(
                f"{name} holds no text tokenizer: {str(error).strip().splitlines()[0]}; give a folder with a "
                "tokenizer.json, or a name on the Hub such as Qwen/Qwen3-0.6B"
            ) from error
        self.vocabulary = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def fingerprint(self) -> str:
        """Returns a hash of the vocabulary, the merges and the preprocessing; the location has no part in it."""
        return hashlib.sha256(self._tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]
