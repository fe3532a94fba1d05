"""Interface of a condition: its values, from a dialogue or a user's request, and their embedding for a model.

The data half and the model half meet in `ConditionValues` and do not know each other. docs/own-condition.md shows how
to add a condition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from vidchat.batch import ConditionValues
from vidchat.dialogue import Clip, Dialogue

Need = Literal["question", "thinker", "voice"]


class ConditionError(ValueError):
    """Raised for an invalid condition in a config."""


class QuestionError(ValueError):
    """Raised for a user's question that the model cannot answer."""


class Example(Protocol):
    """One sample of the training data, as conditions see it: some turns of a dialogue."""

    @property
    def dialogue(self) -> Dialogue:
        """The dialogue."""

    @property
    def clip(self) -> Clip:
        """The clip of the first turn of the responder in the sample."""

    @property
    def answer_text(self) -> str | None:
        """What the responder says in the sample, a line for each turn; `None` if it is not known."""

    @property
    def question_text(self) -> str | None:
        """What the initiator said before the responder's first turn in the sample; `None` if it is not known.

        It is not known where the two speak at the same time: it would tell what has not been heard yet.
        """

    def text_ids(self, text: str | None) -> Tensor:
        """Returns the ids (n,) int64 of a text, at most `MAX_TEXT` of them; n is 0 without a text."""

    def scores(self, names: Sequence[str]) -> Tensor:
        """Returns scores (n,) float of `clip`, standardised over the training data, NaN if unknown.

        The names must be among the `columns` of the condition.
        """

    def voice(self, chunks: int) -> Tensor:
        """Returns codes (n, F, K) of the first chunks of another clip of the responder; n is 0 if there is none."""

    def thinker_features(self) -> Tensor | None:
        """Returns the thinker's features (P, D) of the turn that `question_text` is of; `None` if there is none."""


class Request(Protocol):
    """A user's request, as conditions see it.

    Attributes:
        has_thinker: Whether the release has a thinker.
    """

    has_thinker: bool

    def text_ids(self, text: str) -> Tensor:
        """Returns the ids (n,) int64 of a text; raises `QuestionError` if there are more than `MAX_TEXT`."""

    def voice(self, path: Path | None) -> Tensor:
        """Returns codes (n, F, K) of a clip of a voice; n is 0 without a clip."""

    def thinker_features(self) -> Tensor:
        """Returns the thinker's features (P, D) of the initiator's clip."""


class Shapes(Protocol):
    """Shapes of the tokenizers' outputs."""

    @property
    def vocabulary(self) -> int:
        """Number of ids of the text tokenizer."""

    @property
    def codes(self) -> Any:
        """Shape of the audio codec's codes; `None` for a model without audio."""


class ChunkTokens(Protocol):
    """The model's embedding of chunks, which conditions made of chunks can use."""

    def embed_codes(self, codes: Tensor, roles: Tensor) -> Tensor:
        """Returns tokens (B, T, F, D) for codes (B, T, F, K) and roles (B, T)."""


class ConditionEmbedding(nn.Module):
    """Model half of a condition: embeds its values as tokens.

    Attributes:
        timed: Whether a value is a chunk. If False, each value is one token, takes the next position, and sees itself
            and all tokens before it. If True, each value is a chunk of as many tokens as it has codec frames; chunks
            take their positions in time before the initiator's clip, and the tokens of a chunk see each other.
    """

    timed: ClassVar[bool] = False

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Returns tokens (B, N, D), or (B, N, F, D) if timed, for values (B, N, ...)."""
        raise NotImplementedError


class Condition(ABC):
    """A condition of answers: a frozen dataclass whose fields are its settings in a config.

    Attributes:
        needs: Data that the condition requires: `question`, a turn of the initiator, without which no answer is
            generated; `thinker`, a thinker's features of that turn; `voice`, other clips of the responder. In training
            each may be missing.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the scores that the condition reads; the data set computes their means and standard deviations."""
        return ()

    @abstractmethod
    def from_dialogue(self, example: Example) -> ConditionValues:
        """Returns values (N, ...) and mask (N,) for a sample of the training data."""

    @abstractmethod
    def from_request(self, value: Any, request: Request) -> ConditionValues:
        """Returns values (N, ...) and mask (N,) for a user's request.

        Args:
            value: The user's value for this condition; `None` if there is none.
            request: The whole request.

        Raises:
            QuestionError: The value is invalid, or is missing although the model needs it.
        """

    def check(self, value: Any, request: Request) -> None:  # noqa: B027  (not abstract: optional)
        """Raises `QuestionError` as `from_request` would, before any work is done."""

    @abstractmethod
    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding | None:
        """Returns a new embedding into tokens of a width, or `None` if the model cannot read this condition."""


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a model.

    Attributes:
        conditions: Conditions by name, in the order of their tokens; timed ones follow the others.
        hears: Whether the model hears the initiator.
        drop: Probability in training that all conditions and all that is heard are hidden together, and, if there are
            several, that each is hidden on its own.
    """

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    hears: bool = False
    drop: float = 0.1


def all_known(values: Tensor) -> ConditionValues:
    """Returns values (N, ...) with a mask (N,) that hides none of them."""
    return ConditionValues(values, torch.ones(len(values), dtype=torch.bool))
