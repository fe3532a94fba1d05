"""The layout of a dialogue: the step of each chunk on the dialogue's clock.

Step 0 holds the reference. At each later step, each person has a chunk or has none. Before each turn of the responder,
its still (chunk 0 of its clip) stands at the step before its first chunk; a turn that starts at step 1 has the
reference as its still. So all branches of the data set are cases of one layout:

    single      reference, said 1 .. T
    dialogue    reference, heard 1 .. U, still U, said U+1 .. U+T
    listening   reference, heard t and said t side by side
    multi-turn  these, one after another or overlapping
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vidchat.dialogue import Role


@dataclass(frozen=True)
class TurnSpan:
    """A turn on the clock, in steps.

    Attributes:
        role: Who speaks, or listens.
        chunks: Number of chunks, without chunk 0.
        start: Step of the first chunk, counted from any origin; `None` directly follows the turn before.
    """

    role: Role
    chunks: int
    start: int | None = None


class Place(NamedTuple):
    """A chunk at a step.

    Attributes:
        step: Step on the dialogue's clock.
        turn: Index of the turn.
        chunk: Index of the chunk in its turn's clip; 0 is a still.
    """

    step: int
    turn: int
    chunk: int


@dataclass(frozen=True)
class Layout:
    """Places of all chunks, in order of their steps.

    Attributes:
        said: The responder's stills and chunks. The first is the reference, at step 0.
        heard: The initiator's chunks.
    """

    said: tuple[Place, ...]
    heard: tuple[Place, ...]


def lay_out(turns: Sequence[TurnSpan]) -> Layout:
    """Returns the layout of a dialogue with at least one turn of the responder, whose first chunk 0 is the reference.

    The earliest turn starts at step 1. Two turns of one person never overlap, and between two of the responder's there
    is a step for the still of the later one: where the clips say otherwise, the later turn and all that follow it move.
    """
    starts = _starts(turns)
    said: list[Place] = []
    heard: list[Place] = []
    for index in sorted(range(len(turns)), key=lambda index: starts[index]):
        turn, start = turns[index], starts[index]
        if turn.role == "initiator":
            heard += [Place(start + chunk - 1, index, chunk) for chunk in range(1, turn.chunks + 1)]
            continue
        if not said:
            said.append(Place(0, index, 0))
        first = 1 if start == 1 and len(said) == 1 else 0  # the reference is this turn's still
        said += [Place(start + chunk - 1, index, chunk) for chunk in range(first, turn.chunks + 1)]
    if not said:
        raise ValueError("no turn has the role 'responder', so there is nothing to lay out")
    return Layout(tuple(said), tuple(heard))


def _starts(turns: Sequence[TurnSpan]) -> list[int]:
    """Returns the step of each turn's first chunk; the earliest is 1."""
    given: list[int] = []
    end = 0  # of the turn before
    for turn in turns:
        given.append(end if turn.start is None else turn.start)
        end = given[-1] + turn.chunks
    free = {"initiator": 1, "responder": 1}  # the first step that a person's next turn may start at
    starts, moved = [0] * len(turns), 1 - min(given, default=0)
    for index in sorted(range(len(turns)), key=lambda index: given[index]):
        role, chunks = turns[index].role, turns[index].chunks
        moved += max(0, free[role] - (given[index] + moved))
        starts[index] = given[index] + moved
        free[role] = starts[index] + chunks + (role == "responder")
    return starts
