"""Features of the question from a frozen thinker (Qwen2.5-Omni), computed when clips are encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vidchat.batch import ConditionValues
from vidchat.conditions.base import (
    ChunkTokens,
    Condition,
    ConditionEmbedding,
    ConditionError,
    Example,
    Need,
    QuestionError,
    Request,
    Shapes,
    all_known,
)
from vidchat.registry import register


@register("features")
@dataclass(frozen=True)
class ThinkerFeatures(Condition):
    """The thinker's features of the question, if it ends before the answer: else they would tell what comes later.

    Attributes:
        width: Values per feature, as many as the thinker gives.
    """

    width: int
    needs: ClassVar[frozenset[Need]] = frozenset({"question", "thinker"})

    def __post_init__(self) -> None:
        if type(self.width) is not int or self.width < 1:
            raise ConditionError(f"condition.features must be a whole number, 0 for none, got {str(self.width)[:80]}")

    def from_dialogue(self, example: Example) -> ConditionValues:
        features = example.thinker_features()
        return all_known(torch.zeros(0, self.width) if features is None else features)

    def from_request(self, value: Any, request: Request) -> ConditionValues:
        return all_known(request.thinker_features())

    def check(self, value: Any, request: Request) -> None:
        if not request.has_thinker:
            raise QuestionError(
                "this model needs a thinker's features, and its release names no thinker; give features as tensors "
                "(ChunkBatch.conditions), or train it with thinker=..."
            )

    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding:
        return FeatureEmbedding(width, self.width)


class FeatureEmbedding(ConditionEmbedding):
    """Projects a thinker's features.

    Args:
        width: D.
        features: Values per feature.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Returns tokens (B, P, D) for features (B, P, D_f)."""
        return self.project(values)
