"""Caption: what the responder looks like and does, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vidchat.batch import ConditionValues
from vidchat.conditions.base import (
    Condition,
    ConditionEmbedding,
    Example,
    QuestionError,
    Request,
    Shapes,
    all_known,
)
from vidchat.conditions.text import TextEmbedding
from vidchat.registry import register


@register("caption")
@dataclass(frozen=True)
class Caption(Condition):
    """The caption of the responder's first turn in a sample; it may be missing."""

    def from_dialogue(self, example: Example) -> ConditionValues:
        return all_known(example.text_ids(example.clip.caption))

    def from_request(self, value: Any, request: Request) -> ConditionValues:
        self.check(value, request)
        return all_known(request.text_ids(value) if value else torch.zeros(0, dtype=torch.long))

    def check(self, value: Any, request: Request) -> None:
        if not isinstance(value, str | None):
            raise QuestionError(f"conditions.caption must be a text, got {str(value)[:80]}")
        if value:
            request.text_ids(value)

    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding:
        return TextEmbedding(width, shapes.vocabulary)
