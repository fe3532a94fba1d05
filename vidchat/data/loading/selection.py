"""The selection of what an answer is made from: the segments of a dialogue's clips, and the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from vidchat.conditions.base import Condition, Need
from vidchat.conditions.node import read_conditions
from vidchat.data.tokens.encoder import Segment
from vidchat.dialogue import Clip, Dialogue, Role, Turn
from vidchat.registry import packages_in


@dataclass(frozen=True)
class Selection:
    """The parts of a dialogue that its answer is made from, besides the reference.

    Attributes:
        conditions: Conditions by name.
        initiator: Whether the question's latents and codes condition the answer.
        earlier_turns: Whether those of the turns before the question do.
        max_chunks: The length of the longest answer. A longer one is cut to its beginning; in the single branch, into
            spans.
        max_turn_chunks: The length of the longest other turn, by default `max_chunks`; of a longer one its end is kept,
            since what follows answers it.
    """

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    initiator: bool = False
    earlier_turns: bool = False
    max_chunks: int = 25
    max_turn_chunks: int | None = None

    @classmethod
    def read(cls, condition: Mapping[str, Any], max_chunks: int) -> Self:
        """Returns the selection of a config's `condition` node, which holds names."""
        return cls(
            read_conditions(condition, packages_in(condition)),
            bool(condition["initiator"]),
            bool(condition["earlier_turns"]),
            max_chunks,
            condition.get("max_turn_chunks"),
        )

    @property
    def turn_chunks(self) -> int:
        """Length of the longest turn that is not the answer."""
        return self.max_chunks if self.max_turn_chunks is None else self.max_turn_chunks

    @property
    def asks(self) -> bool:
        """Whether dialogues without a question cannot be used."""
        return self.initiator or self.needs("question")

    @property
    def features(self) -> bool:
        """Whether a thinker's features of the question are taken."""
        return self.needs("thinker")

    @property
    def voice(self) -> bool:
        """Whether other clips of the responder are taken."""
        return self.needs("voice")

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the answer's scores that conditions read."""
        return tuple(dict.fromkeys(name for condition in self.conditions.values() for name in condition.columns))

    def needs(self, need: Need) -> bool:
        """Returns whether any condition needs this of the data."""
        return any(need in condition.needs for condition in self.conditions.values())

    def without(self, need: Need) -> Self:
        """Returns the same selection without the conditions that need this."""
        return replace(
            self,
            conditions={name: condition for name, condition in self.conditions.items() if need not in condition.needs},
        )

    def answer(self, dialogue: Dialogue) -> Segment:
        """Returns a dialogue's answer: its beginning, or all of it in spans in the single branch."""
        part: Literal["first", "spans"] = "spans" if dialogue.branch == "single" else "first"
        return Segment(dialogue.answer, part, self.max_chunks)

    def turns(self, dialogue: Dialogue) -> list[tuple[Segment, Role]]:
        """Returns the turns that condition the answer, in order: earlier ones, then the question."""
        turns: list[Turn] = []
        question, answer = dialogue.question, dialogue.answer
        for turn in dialogue.turns:
            if turn.clip is question:
                turns += [turn] if self.initiator else []
            elif turn.clip is not answer and self.earlier_turns:
                turns.append(turn)
        return [(self._turn(dialogue, turn.clip), turn.role) for turn in turns]

    def question(self, dialogue: Dialogue) -> Segment | None:
        """Returns what the thinker sees, if there is one."""
        clip = dialogue.question if self.features else None
        return None if clip is None else replace(self._turn(dialogue, clip), features=True)

    def _turn(self, dialogue: Dialogue, clip: Clip) -> Segment:
        # A listener's turn runs at the same time as the speaker's, from its beginning.
        part: Literal["first", "last"] = "first" if dialogue.branch == "listening" else "last"
        return Segment(clip, part, self.turn_chunks)

    def segments(self, dialogue: Dialogue) -> list[Segment]:
        """Returns all segments of a dialogue to encode; the question last, which may ask for features too."""
        question = self.question(dialogue)
        turns = [segment for segment, _ in self.turns(dialogue)]
        return [self.answer(dialogue), *turns, *([] if question is None else [question])]
