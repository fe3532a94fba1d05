"""What a condition is: what it takes from a dialogue or from a user's request, and how a model reads it.

The two halves meet in `ConditionValues`. The data half knows no model, the model half no data. docs/own-condition.md
adds one.
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
from vidchat.dialogue import Dialogue

Need = Literal["question", "thinker", "voice"]


class ConditionError(ValueError):
    """A condition that cannot be as a config has it."""


class QuestionError(ValueError):
    """A question that this model cannot take."""


class Example(Protocol):
    """One answer of the training data, as its conditions see it."""

    @property
    def dialogue(self) -> Dialogue:
        """The dialogue whose answer is learnt."""

    def text_ids(self, text: str | None) -> Tensor:
        """Ids (n,) int64 of a text, at most `MOST_TEXT` of them; none of no text."""

    def scores(self, names: Sequence[str]) -> Tensor:
        """Scores (n,) float of the answer, standardised over the training data, NaN where unknown; see `columns`."""

    def voice(self, chunks: int) -> Tensor:
        """Codes (n, F, K) of the first chunks of another clip of the responder; n is 0 where there is none."""

    def thinker_features(self) -> Tensor:
        """Features (P, D) that the thinker makes of the question."""


class Request(Protocol):
    """What a user asks for, as conditions see it."""

    has_thinker: bool

    def text_ids(self, text: str) -> Tensor:
        """Ids (n,) int64 of a text; raises `QuestionError` if there are more than `MOST_TEXT`."""

    def voice(self, path: Path | None) -> Tensor:
        """Codes (n, F, K) of a clip of a voice; n is 0 without a clip."""

    def thinker_features(self) -> Tensor:
        """Features (P, D) that the thinker makes of the initiator's clip."""


class Shapes(Protocol):
    """What tokenizers tell a model of their tokens."""

    @property
    def vocabulary(self) -> int:
        """Ids of the text tokenizer."""

    @property
    def codes(self) -> Any:
        """Shape of an audio codec's codes; `None` for a model without audio."""


class ChunkTokens(Protocol):
    """A model's own embedding of chunks, which conditions made of chunks share."""

    def embed_codes(self, codes: Tensor, roles: Tensor) -> Tensor:
        """Codes (B, T, F, K) and roles (B, T) to tokens (B, T, F, D)."""


class ConditionEmbedding(nn.Module):
    """Model half of a condition: its values as tokens.

    Attributes:
        timed: False: one token for each value. Each takes the next position, and sees itself and what is before it.
            True: each value is a chunk, of as many tokens as a chunk has codec frames. Chunks stand on the clock in
            front of the initiator's clip, and each sees itself as a whole.
    """

    timed: ClassVar[bool] = False

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Tokens (B, N, D), or (B, N, F, D) if timed, of values (B, N, ...)."""
        raise NotImplementedError


class Condition(ABC):
    """One thing that answers are conditioned on; a frozen dataclass whose fields are its settings in a config.

    Attributes:
        needs: What the data must have for it: `question`, a turn of the initiator; `thinker`, the features that a
            thinker makes of that; `voice`, other clips of the responder.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the answer's scores that it reads, so that the data set has their mean and standard deviation."""
        return ()

    @abstractmethod
    def from_dialogue(self, example: Example) -> ConditionValues:
        """Takes values (N, ...) and mask (N,) from an answer of the training data."""

    @abstractmethod
    def from_request(self, given: Any, request: Request) -> ConditionValues:
        """Takes values (N, ...) and mask (N,) from what a user gives under its name, `None` if nothing.

        Raises:
            QuestionError: it lacks what the model needs, or cannot be.
        """

    def check(self, given: Any, request: Request) -> None:  # noqa: B027  (where nothing can be wrong)
        """Raises `QuestionError`, as `from_request` does, before any work is done."""

    @abstractmethod
    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding | None:
        """The model half, untrained, of tokens of `width`; `None` for a model that cannot read it."""


@dataclass(frozen=True)
class Conditioning:
    """What a model is conditioned on.

    Attributes:
        conditions: Conditions by name, in the order of their tokens; timed ones follow the others.
        hears: Whether it hears turns, those of the initiator or earlier ones.
        drop: Probability in training with which all conditions of a sample, and what it hears, are hidden together,
            and with which each of several is hidden on its own besides; what is alone is hidden with this probability.
    """

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    hears: bool = False
    drop: float = 0.1


def all_known(values: Tensor) -> ConditionValues:
    """Values (N, ...) of which each is there."""
    return ConditionValues(values, torch.ones(len(values), dtype=torch.bool))
