"""Text: the transcript of the responder, who then speaks it, or that of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

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
    all_known,
)
from vidchat.registry import register

Turn = Literal["answer", "question"]
MAX_TEXT = 1000  # ids of the longest text that a model reads: as bytes, a minute of English


@register("text")
@dataclass(frozen=True)
class Text(Condition):
    """Transcript of the very chunks that a sample has.

    Attributes:
        turn: Whose: `answer`, all turns of the responder, or `question`, the turn of the initiator before them.
    """

    turn: Turn = "answer"

    def __post_init__(self) -> None:
        if self.turn not in get_args(Turn):
            raise ConditionError(f"condition.text must be answer, question or null, got {str(self.turn)[:80]}")

    def from_dialogue(self, example: Example) -> ConditionValues:
        return all_known(example.text_ids(example.answer_text if self.turn == "answer" else example.question_text))

    def from_request(self, value: Any, request: Request) -> ConditionValues:
        if not value:
            raise QuestionError('this model needs a text to speak: give text="..."')
        return all_known(request.text_ids(value))

    def check(self, value: Any, request: Request) -> None:
        self.from_request(value, request)

    def embedding(self, width: int, shapes: Shapes) -> ConditionEmbedding:
        return TextEmbedding(width, shapes.vocabulary)


class TextEmbedding(ConditionEmbedding):
    """Embeds the ids of a text.

    Args:
        width: D.
        vocabulary: Number of ids.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.ids = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.ids.weight, std=1.0)

    def forward(self, values: Tensor, chunks: ChunkTokens) -> Tensor:
        """Returns tokens (B, L, D) for ids (B, L)."""
        return self.ids(values)
