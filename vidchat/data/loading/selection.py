"""The selection of what samples are made from: the segments of a dialogue's clips, and the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from vidchat.conditions.base import Condition, Need
from vidchat.conditions.node import read_conditions
from vidchat.data.tokens.encoder import Segment
from vidchat.data.tokens.token_cache import part_of
from vidchat.dialogue import Branch, Dialogue, Role
from vidchat.registry import packages_in


@dataclass(frozen=True)
class Selection:
    """The parts of a dialogue that a model is trained on.

    Attributes:
        conditions: Conditions by name.
        hears: Whether the model hears the initiator. Then a dialogue is one sample, with all its turns; else each turn
            of the responder is a sample of its own. In the single branch, each span of the clip is.
        max_chunks: The length of the responder's longest turn. A longer one is cut to its beginning; in the single
            branch, into spans.
        max_turn_chunks: The length of the initiator's longest turn, by default `max_chunks`; of a longer one the end is
            kept, since what follows answers it.
        max_steps: The length of the longest dialogue, `None` for no limit; of a longer one the earliest turns are left
            out.
    """

    conditions: Mapping[str, Condition] = field(default_factory=dict)
    hears: bool = False
    max_chunks: int = 25
    max_turn_chunks: int | None = None
    max_steps: int | None = None

    @classmethod
    def read(cls, condition: Mapping[str, Any], max_chunks: int, max_steps: int | None = None) -> Self:
        """Returns the selection of a config's `condition` node, which holds names."""
        return cls(
            read_conditions(condition, packages_in(condition)),
            bool(condition["initiator"]),
            max_chunks,
            condition.get("max_turn_chunks"),
            max_steps,
        )

    def limit(self, role: Role) -> int:
        """Returns the length of the longest turn of a person, in chunks."""
        return self.max_chunks if role == "responder" or self.max_turn_chunks is None else self.max_turn_chunks

    @property
    def longest(self) -> int:
        """Length of the longest turn, in chunks."""
        return max(self.max_chunks, self.max_turn_chunks or 0)

    @property
    def features(self) -> bool:
        """Whether a thinker's features of questions are taken."""
        return self.needs("thinker")

    @property
    def voice(self) -> bool:
        """Whether other clips of the responder are taken."""
        return self.needs("voice")

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the responder's scores that conditions read."""
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

    def whole(self, branch: Branch) -> bool:
        """Returns whether a dialogue of this branch is one sample."""
        return self.hears and branch != "single"

    def segments(self, dialogue: Dialogue) -> list[Segment]:
        """Returns all segments of a dialogue to encode, in the order of its turns."""
        whole, turns = self.whole(dialogue.branch), dialogue.turns
        responders = [position for position, turn in enumerate(turns) if turn.role == "responder"]
        questions = {question_of(dialogue, position) for position in (responders[:1] if whole else responders)}
        asked = questions - {None} if self.features else set()
        return [
            Segment(turn.clip, part_of(dialogue, turn), self.limit(turn.role), position in asked)
            for position, turn in enumerate(turns)
            if whole or turn.role == "responder" or position in asked
        ]


def question_of(dialogue: Dialogue, position: int) -> int | None:
    """Returns the position of the turn that a turn of the responder answers: the initiator's last before it.

    It is `None` if there is none, and in the listening branch, where it is still being spoken.
    """
    if dialogue.branch in ("single", "listening"):
        return None
    return next((before for before in reversed(range(position)) if dialogue.turns[before].role == "initiator"), None)
