"""Quality scores of the answer: its own scores in training, requested scores at generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vidchat.batch import ConditionValues
from vidchat.conditions.base import (
    ChunkTokens,
    Condition,
    ConditionEmbedding,
    ConditionError,
    Example,
    QuestionError,
    Request,
    Shapes,
)
from vidchat.registry import register
from vidchat.sinusoid import sinusoid

MAX_DEVIATIONS = 100  # far beyond any score in training


@register("scores")
@dataclass(frozen=True)
class Scores(Condition):
    """Scores in standard deviations from the mean of the training data; unknown scores are masked.

    Attributes:
        names: Names of the scores, e.g. `dover`.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.names, str | int | float) or not all(isinstance(name, str) for name in self.names):
            raise ConditionError(f"condition.scores must be a list of names of scores, got {str(self.names)[:80]}")
        object.__setattr__(self, "names", tuple(self.names))

    @property
    def columns(self) -> tuple[str, ...]:
        return self.names

    def from_dialogue(self, example: Example) -> ConditionValues:
        scores = example.scores(self.names)
        return ConditionValues(scores.nan_to_num().float(), ~scores.isnan())

    def from_request(self, value: Any, request: Request) -> ConditionValues:
        self.check(value, request)
        scores: Mapping[str, float] = value or {}
        values = torch.tensor([scores.get(name, 0.0) for name in self.names])
        return ConditionValues(values, torch.tensor([name in scores for name in self.names]))

    def check(self, value: Any, request: Request) -> None:
        scores: Mapping[str, Any] = value or {}
        unknown = set(scores) - set(self.names)
        if unknown:
            raise QuestionError(f"this model knows the scores {list(self.names)}, not {', '.join(sorted(unknown))}")
        for name, score in scores.items():
            if not _is_score(score):
                limit = MAX_DEVIATIONS
                raise QuestionError(
                    f"scores.{name}={score}: give a number from -{limit} to {limit}, in standard deviations"
                )

    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding:
        return ScoreEmbedding(width, len(self.names))


class ScoreEmbedding(ConditionEmbedding):
    """Embeds each score by its name and its value.

    Args:
        width: D.
        count: Number of scores.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.names = nn.Embedding(count, width)
        self.values = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Returns tokens (B, N, D) for scores (B, N)."""
        return self.values(sinusoid(values * 100, 64)) + self.names.weight


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_DEVIATIONS
