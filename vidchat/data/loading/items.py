"""The answers that can be drawn, as columns: which tokens they and their conditions are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args, overload

import numpy as np

from vidchat.data.columns import Columns
from vidchat.data.dialogue_table import DialogueTable
from vidchat.data.tokens.encoder import Part
from vidchat.data.tokens.track_index import key_of, number_of
from vidchat.dialogue import Dialogue, Role

PARTS, ROLE_NAMES = get_args(Part), get_args(Role)
NOBODY = -1  # in the column of people


class TurnKey(NamedTuple):
    """An encoded turn: the part of it that is there, its key, and its role."""

    part: Part
    key: str
    role: Role


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
        people: Whether it is kept who answers.
    """

    def __init__(self, tables: Sequence[DialogueTable], scores: Sequence[str] = (), people: bool = False) -> None:
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
        self._people: dict[tuple[int, str], int] | None = {} if people else None
        self.grids: list[tuple[int, int]] = []

    def add(self, item: Item, dialogue: Dialogue) -> None:
        """Appends an item of a dialogue."""
        if item.grid not in self.grids:
            self.grids.append(item.grid)
        person = NOBODY
        if self._people is not None:  # the same name in another set may be another person
            person = self._people.setdefault((item.source, dialogue.answer.speaker), len(self._people))
        question = 0 if item.question is None else number_of(item.question)
        self._columns.add(
            *(item.source, item.row, number_of(item.answer), item.span, question, item.question is not None),
            *(len(self._turns), len(item.turns), *item.lengths, self.grids.index(item.grid), person),
        )
        for turn in item.turns:
            self._turns.add(number_of(turn.key), PARTS.index(turn.part), ROLE_NAMES.index(turn.role))
        if self._scores is not None:
            self._scores.add(*(dialogue.answer.scores.get(name, float("nan")) for name in self.score_names))

    def finish(self) -> Items:
        """No more will come: forgets people's names, which are many."""
        self._people = None
        return self

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
