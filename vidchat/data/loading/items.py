"""The answers that can be drawn, as columns: which tokens they and their conditions are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args, overload

import numpy as np

from vidchat.data.columns import Columns
from vidchat.data.dialogue_table import DialogueTable
from vidchat.data.tokens.encoder import Part
from vidchat.data.tokens.track_index import key_of
from vidchat.dialogue import Dialogue, Role

PARTS, ROLE_NAMES = get_args(Part), get_args(Role)
NOBODY = -1  # in the column of people


class TurnKey(NamedTuple):
    """An encoded turn: the part of it that is there, its key, and its role."""

    part: Part
    key: str
    role: Role


@dataclass(frozen=True)
class Answers:
    """Some answers of one source: n of them, t turns that condition them, S scores.

    Attributes:
        source: Which of the mixed sets they are from.
        row: (n,) their dialogues.
        answer: (n,) uint64, the numbers that stand for the answers' keys.
        span: (n,) which span of its answer each is.
        question: (n,) uint64, of what a thinker saw; or `None`.
        lengths: (n, 2) chunks of each, and of its turns together.
        grid: (n, 2) h and w of the latents.
        person: (n,) who answers, `NOBODY` where that is not kept.
        scores: (n, S) float64, NaN where there is none.
        turns: (n,) how many turns condition each.
        turn_key: (t,) uint64, the turns one after the other.
        turn_part: (t,) the places of their parts in `PARTS`.
        turn_role: (t,) the places of their roles in `ROLE_NAMES`.
    """

    source: int
    row: np.ndarray
    answer: np.ndarray
    span: np.ndarray
    question: np.ndarray | None
    lengths: np.ndarray
    grid: np.ndarray
    person: np.ndarray
    scores: np.ndarray
    turns: np.ndarray
    turn_key: np.ndarray
    turn_part: np.ndarray
    turn_role: np.ndarray


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to learn: a span of a dialogue's answer, and the keys of all its tokens.

    Attributes:
        table: Of the source's dialogues.
        row: Which of them it is.
        source: Which of the mixed sets it is from.
        answer: The answer's key, of which this is the span `span`.
        span: See above.
        turns: What conditions it.
        question: The key of what a thinker saw, or `None`.
        lengths: Chunks of the answer, and of all turns together.
        grid: (h, w) of the latents.
    """

    table: DialogueTable
    row: int
    source: int
    answer: str
    span: int
    turns: tuple[TurnKey, ...]
    question: str | None
    lengths: tuple[int, int]
    grid: tuple[int, int]

    @property
    def dialogue(self) -> Dialogue:
        """Whose answer it is; made anew each time."""
        return self.table[self.row]


class Items(Sequence[Item]):
    """Items by number, of one split of all sources.

    Args:
        tables: Of each source, its folder's dialogues.
        scores: Names of scores that are kept of each answer.
    """

    def __init__(self, tables: Sequence[DialogueTable], scores: Sequence[str] = ()) -> None:
        self.tables, self.score_names = list(tables), tuple(scores)
        self._columns = Columns(
            source="h",
            row="i",
            answer="Q",
            span="i",
            question="Q",
            asked="b",
            first_turn="q",
            turns="i",
            length="i",
            turn_length="i",
            grid="h",
            person="i",
        )
        self._turns = Columns(key="Q", part="b", role="b")
        self._scores = Columns(**dict.fromkeys(self.score_names, "d")) if scores else None
        self.grids: list[tuple[int, int]] = []

    def extend(self, some: Answers) -> None:
        """Appends answers."""
        for grid in np.unique(some.grid, axis=0).tolist():
            if tuple(grid) not in self.grids:
                self.grids.append((grid[0], grid[1]))
        grids = np.array(self.grids).reshape(-1, 2)
        self._columns.extend(
            source=np.full(len(some.row), some.source),
            row=some.row,
            answer=some.answer,
            span=some.span,
            question=np.zeros(len(some.row)) if some.question is None else some.question,
            asked=np.full(len(some.row), some.question is not None),
            first_turn=len(self._turns) + np.cumsum(some.turns) - some.turns,
            turns=some.turns,
            length=some.lengths[:, 0],
            turn_length=some.lengths[:, 1],
            grid=(some.grid[:, None] == grids).all(2).argmax(1) if len(grids) else some.row,
            person=some.person,
        )
        self._turns.extend(key=some.turn_key, part=some.turn_part, role=some.turn_role)
        if self._scores is not None:
            self._scores.extend(**dict(zip(self.score_names, some.scores.T, strict=True)))

    def __len__(self) -> int:
        return len(self._columns)

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        source, row, answer, span, question, asked, first, turns, *lengths, grid, _ = self._columns.row(number)
        return Item(
            self.tables[source],
            row,
            source,
            key_of(answer),
            span,
            tuple(self._turn(turn) for turn in range(first, first + turns)),
            key_of(question) if asked else None,
            (lengths[0], lengths[1]),
            self.grids[grid],
        )

    def _turn(self, number: int) -> TurnKey:
        key, part, role = self._turns.row(number)
        return TurnKey(PARTS[part], key_of(key), ROLE_NAMES[role])

    def dialogues_of(self, pieces: Collection[int], source: int) -> list[str]:
        """The ids of a source's dialogues that need one of some pieces, by the numbers that stand for their keys."""
        wanted = np.fromiter(pieces, np.uint64, len(pieces))
        column = self._columns.view
        found = np.isin(column("answer"), wanted) | (column("asked").astype(bool) & np.isin(column("question"), wanted))
        turns = np.flatnonzero(np.isin(self._turns.view("key"), wanted))
        ends = column("first_turn") + column("turns")
        found[np.searchsorted(ends, turns, side="right")] = True
        rows = column("row")[found & (column("source") == source)]
        return [self.tables[source][row].id for row in np.unique(rows).tolist()]

    @property
    def sources(self) -> np.ndarray:
        """(n,) the source of each."""
        return self._columns.view("source")

    @property
    def lengths(self) -> np.ndarray:
        """(n, 2) chunks of each one's answer, and of its turns together."""
        return np.stack([self._columns.view("length"), self._columns.view("turn_length")], axis=1)

    @property
    def shapes(self) -> np.ndarray:
        """(n,) of each the number of its grid in the sorted list of all grids."""
        place = {grid: rank for rank, grid in enumerate(sorted(self.grids))}
        ranks = np.array([place[grid] for grid in self.grids], np.int16)
        return ranks[self._columns.view("grid")] if len(self) else np.zeros(0, np.int16)

    def scores(self, numbers: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """(k, S) float64 the scores of k answers, NaN where there is none."""
        if self._scores is None:
            return np.zeros((len(self._columns.view("row")[numbers]), 0))
        return np.stack([self._scores.view(name)[numbers] for name in self.score_names], axis=1)

    def voices(self) -> Voices:
        """Who answers what, for those whose people are kept."""
        return Voices(*(self._columns.view(name) for name in ("person", "answer", "span")))


class Voices:
    """Of each person the answers, each once.

    Args:
        person: (n,) of each item, its person's number.
        answer: (n,) the number of its answer's key.
        span: (n,) which span of the answer it is.
    """

    def __init__(self, person: np.ndarray, answer: np.ndarray, span: np.ndarray) -> None:
        order = np.lexsort((span, answer, person))
        rows = np.stack([column[order].astype(np.uint64) for column in (person, answer, span)])
        once = np.append(True, (rows[:, 1:] != rows[:, :-1]).any(0))[: len(order)]
        self._kept = order[once]
        self._answer, self._span, self._person = answer, span, person
        self._first = person[self._kept].searchsorted(np.arange(person.max(initial=-1) + 2))

    def of(self, item: int) -> list[tuple[str, int]]:
        """(key, span) of every answer of an item's person, that item's own among them."""
        person = int(self._person[item])
        rows = self._kept[self._first[person] : self._first[person + 1]]
        return [(key_of(int(self._answer[row])), int(self._span[row])) for row in rows]
