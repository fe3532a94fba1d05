"""The answers that can be drawn, as columns: which dialogue's each is, which span, how long and of what shape."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np

from vidchat.data.loading.dialogues import PARTS, ROLE_NAMES, Dialogues
from vidchat.data.loading.pieces import Pieces
from vidchat.data.tokens.encoder import Part
from vidchat.data.tokens.track_index import key_of
from vidchat.dialogue import Dialogue, Role

NOBODY = -1  # in the column of people
COLUMNS = {"source": "i2", "row": "i4", "span": "i4", "length": "i4", "turn_length": "i4", "grid": "i2", "person": "i4"}


class TurnKey(NamedTuple):
    """An encoded turn: the part of it that is there, its key, and its role."""

    part: Part
    key: str
    role: Role


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to learn: a span of a dialogue's answer, and the keys of all its tokens.

    Attributes:
        table: The source's dialogues.
        row: The dialogue's number.
        source: The number of the source.
        answer: The answer's key.
        span: The number of the span.
        turns: The turns that condition it.
        question: The key of what a thinker saw, or `None`.
        lengths: Chunks of the answer, and of all turns together.
        grid: (h, w) of the latents.
    """

    table: Dialogues
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
        pieces: The pieces of each source's folder.
        parts: Some items of one source after the other: their `source`, and (n,) each of the other columns, save that
            `grid` is (n, 2), h and w of the latents.
    """

    def __init__(self, segments: Sequence[Pieces], parts: Sequence[dict[str, Any]]) -> None:
        self._pieces = list(segments)
        codes = [part["grid"][:, 0] << 32 | part["grid"][:, 1] for part in parts]
        grids = np.unique(np.concatenate([np.zeros(0, np.int64), *map(np.unique, codes)]))
        self.grids: list[tuple[int, int]] = [(code >> 32, code & 0xFFFFFFFF) for code in grids.tolist()]
        parts = [part | {"grid": grids.searchsorted(code)} for part, code in zip(parts, codes, strict=True)]
        self._columns = {
            name: np.concatenate(
                [np.zeros(0, kind), *(np.broadcast_to(p[name], len(p["row"])).astype(kind) for p in parts)]
            )
            for name, kind in COLUMNS.items()
        }

    def __len__(self) -> int:
        return len(self._columns["row"])

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        source, row, span, *lengths, grid, _ = (column[number].item() for column in self._columns.values())
        segments, rows = self._pieces[source], np.array([row])
        turns, used = segments.dialogues.turns, segments.turns(rows)[0]
        (answer,) = turns["piece"][segments.answers(rows)].tolist()
        (question,) = turns["piece"][segments.questions(rows)].tolist() if segments.conditions.features else [None]
        told = (turns[name][used].tolist() for name in ("part", "piece", "role"))
        return Item(
            segments.dialogues,
            row,
            source,
            key_of(answer),
            span,
            tuple(TurnKey(PARTS[part], key_of(key), ROLE_NAMES[role]) for part, key, role in zip(*told, strict=True)),
            None if question is None else key_of(question),
            (lengths[0], lengths[1]),
            self.grids[grid],
        )

    def dialogues_of(self, segments: Collection[int], source: int) -> list[str]:
        """The ids of a source's dialogues that need one of some pieces, by the numbers that stand for their keys."""
        ours, wanted = self._pieces[source], {key_of(segment) for segment in segments}
        turns = ours.dialogues.turns["piece"]
        some = np.flatnonzero(np.isin(turns, np.fromiter(segments, np.uint64, len(segments))))
        rows = np.unique(ours.dialogues.first.searchsorted(some, side="right") - 1)
        numbers = np.flatnonzero((self.sources == source) & np.isin(self._columns["row"], rows)).tolist()
        items = (self[number] for number in numbers)
        needed = {
            item.row for item in items if wanted & {item.answer, item.question, *(turn.key for turn in item.turns)}
        }
        return [ours.dialogues[row].id for row in sorted(needed)]

    @property
    def sources(self) -> np.ndarray:
        """(n,) the source of each."""
        return self._columns["source"]

    @property
    def lengths(self) -> np.ndarray:
        """(n, 2) chunks of each one's answer, and of its turns together."""
        return np.stack([self._columns["length"], self._columns["turn_length"]], axis=1)

    @property
    def shapes(self) -> np.ndarray:
        """(n,) the number of each one's grid in `grids`, which is sorted."""
        return self._columns["grid"]

    def scores(self, numbers: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """(k, S) float64 the scores of k answers, NaN where there is none."""
        sources, rows = self.sources[numbers], self._columns["row"][numbers]
        names = self._pieces[0].conditions.scores
        found = np.full((len(rows), len(names)), np.nan)
        for source in np.unique(sources).tolist() if names else ():
            mine = sources == source
            found[mine] = self._pieces[source].dialogues.scores(rows[mine], names)
        return found

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        """(k,) uint64 the numbers that stand for the keys of k answers."""
        sources, rows, found = self.sources[numbers], self._columns["row"][numbers], np.zeros(len(numbers), np.uint64)
        for source in np.unique(sources).tolist():
            mine, segments = sources == source, self._pieces[source]
            found[mine] = segments.dialogues.turns["piece"][segments.answers(rows[mine])]
        return found

    def voices(self) -> Voices:
        """Who answers what, for those whose people are kept."""
        return Voices(self._columns["person"], self._columns["span"], self)


class Voices:
    """Of each person the answers, each once.

    Args:
        person: (n,) the person of each item.
        span: (n,) which span of its answer each is.
        items: The items.
    """

    def __init__(self, person: np.ndarray, span: np.ndarray, items: Items) -> None:
        self._items, self._span, self._person = items, span, person
        answer = items.answers(np.arange(len(person)))
        order = np.lexsort((span, answer, person))
        once = np.full(len(order), False)
        once[:1] = True
        for column in (person, answer, span):
            sorted_ = column[order]
            once[1:] |= sorted_[1:] != sorted_[:-1]
        self._kept = order[once].astype(np.int32)
        self._first = person[self._kept].searchsorted(np.arange(person.max(initial=-1) + 2))

    def of(self, item: int) -> list[tuple[str, int]]:
        """(key, span) of every answer of an item's person, that item's own among them."""
        person = int(self._person[item])
        rows = self._kept[self._first[person] : self._first[person + 1]]
        answers = self._items.answers(rows).tolist()
        return [(key_of(answer), span) for answer, span in zip(answers, self._span[rows].tolist(), strict=True)]
