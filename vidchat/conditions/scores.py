"""Quality scores of the answer: in training those it has, at generation those that are asked for."""

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

MOST = 100  # standard deviations; far beyond any score in training


@register("scores")
@dataclass(frozen=True)
class Scores(Condition):
    """Scores in standard deviations from the training data's mean; one that is unknown is masked.

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

    def from_request(self, given: Any, request: Request) -> ConditionValues:
        self.check(given, request)
        asked: Mapping[str, float] = given or {}
        values = torch.tensor([asked.get(name, 0.0) for name in self.names])
        return ConditionValues(values, torch.tensor([name in asked for name in self.names]))

    def check(self, given: Any, request: Request) -> None:
        asked: Mapping[str, Any] = given or {}
        unknown = set(asked) - set(self.names)
        if unknown:
            raise QuestionError(f"this model knows the scores {list(self.names)}, not {', '.join(sorted(unknown))}")
        for name, value in asked.items():
            if not _is_score(value):
                raise QuestionError(
                    f"scores.{name}={value}: give a number from -{MOST} to {MOST}, in standard deviations"
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
        """Tokens (B, N, D) of scores (B, N)."""
        return self.values(sinusoid(values * 100, 64)) + self.names.weight


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -MOST <= value <= MOST
