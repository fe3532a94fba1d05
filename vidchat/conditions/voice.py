"""A sample of the responder's voice; in training, another clip of the same speaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidchat.batch import VOICE, ConditionValues
from vidchat.conditions.base import (
    ChunkTokens,
    Condition,
    ConditionEmbedding,
    ConditionError,
    Example,
    Need,
    Request,
    Shapes,
    all_known,
)
from vidchat.registry import register


@register("voice")
@dataclass(frozen=True)
class Voice(Condition):
    """Codes of the responder's voice.

    Attributes:
        chunks: Length of the longest sample in training, in chunks.
    """

    chunks: int = 12
    needs: ClassVar[frozenset[Need]] = frozenset({"voice"})

    def __post_init__(self) -> None:
        if type(self.chunks) is not int or self.chunks < 1:
            raise ConditionError(f"condition.voice must be true, false or a number of chunks, got {self.chunks}")

    def from_dialogue(self, example: Example) -> ConditionValues:
        return all_known(example.voice(self.chunks))

    def from_request(self, value: Any, request: Request) -> ConditionValues:
        return all_known(request.voice(value))

    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding | None:
        return None if shapes.codes is None else VoiceEmbedding()


class VoiceEmbedding(ConditionEmbedding):
    """Embeds codes with the model's embedding of chunks, in a separate role."""

    timed = True

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Returns tokens (B, V, F, D) for codes (B, V, F, K)."""
        roles = torch.full(values.shape[:2], VOICE, device=values.device)
        return chunks.embed_codes(values, roles)
