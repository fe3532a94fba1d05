"""The samples that can be drawn, as columns: the dialogue, span, lengths and shape of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vidchat.data.index import Columns
from vidchat.data.loading.dialogues import PARTS, ROLE_NAMES, Dialogues
from vidchat.data.loading.segment_table import SegmentTable
from vidchat.data.tokens.encoder import Part
from vidchat.data.tokens.track_index import key_of
from vidchat.dialogue import Dialogue, Role

COLUMNS = {"source": "i2", "row": "i4", "span": "i4", "lengths": "i4", "grid": "u4", "person": "i4"}


class TurnKey(NamedTuple):
    """An encoded turn: which part of its clip is encoded, its key, and its role."""

    part: Part
    key: str
    role: Role


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to learn: a span of a dialogue's answer, and the keys of all its tokens.

    Attributes:
        dialogues: The dialogues of the source.
        row: The row of the dialogue.
        source: The index of the source.
        answer: The key of the answer.
        span: The index of the span within the answer.
        turns: The turns that condition the answer.
        question: The key of what the thinker sees, or `None`.
        lengths: Chunks of the answer, and of all turns together.
        grid: (h, w) of the latents.
    """

    dialogues: Dialogues
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
        """The dialogue of the answer; parsed anew each time."""
        return self.dialogues[self.row]


class SampleIndex:
    """The samples of one split of all sources.

    Args:
        tables: The segments of each source's folder.
        blocks: Columns of consecutive samples, in the types of `COLUMNS`: (n, 2) for `lengths`, (n,) for the others.
            `grid` is h << 16 | w. `person` is there if voices are drawn.

    Attributes:
        grids: (h, w) of all latents, sorted.
        sources: (n,) the source of each sample.
        lengths: (n, 2) chunks of each sample's answer, and of its turns together.
        shapes: (n,) the index in `grids` of each sample's grid.
    """

    def __init__(self, tables: Sequence[SegmentTable], blocks: Sequence[Columns]) -> None:
        self._tables = list(tables)
        codes = np.unique(np.concatenate([np.zeros(0, "u4"), *(np.unique(block["grid"]) for block in blocks)]))
        self.grids: list[tuple[int, int]] = [(code >> 16, code & 0xFFFF) for code in codes.tolist()]
        self.sources = _join(blocks, "source")
        self.lengths = _join(blocks, "lengths").reshape(-1, 2)
        self.shapes = np.concatenate([np.zeros(0, "i2"), *(_places(codes, block["grid"]) for block in blocks)])
        self._rows, self._spans = _join(blocks, "row"), _join(blocks, "span")
        self._people = _join([block for block in blocks if "person" in block], "person")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        source, row = int(self.sources[number]), int(self._rows[number])
        table, rows = self._tables[source], np.array([row])
        turns, used = table.dialogues.turns, table.turns(rows)[0]
        (answer,) = turns["segment"][table.answers(rows)].tolist()
        (question,) = turns["segment"][table.questions(rows)].tolist() if table.selection.features else [None]
        columns = zip(*(turns[name][used].tolist() for name in ("part", "segment", "role")), strict=True)
        answer_chunks, turn_chunks = self.lengths[number].tolist()
        return Sample(
            table.dialogues,
            row,
            source,
            key_of(answer),
            int(self._spans[number]),
            tuple(TurnKey(PARTS[part], key_of(key), ROLE_NAMES[role]) for part, key, role in columns),
            None if question is None else key_of(question),
            (answer_chunks, turn_chunks),
            self.grids[self.shapes[number]],
        )

    def dialogues_of(self, segments: Collection[int], source: int) -> list[str]:
        """Returns the ids of a source's dialogues that need one of some segments, given by their hashes."""
        table, rows = self._tables[source], np.unique(self._rows[self.sources == source])
        turns, owner = table.needed(rows)
        match = np.isin(table.dialogues.turns["segment"][turns], np.fromiter(segments, np.uint64, len(segments)))
        return [table.dialogues[row].id for row in rows[np.unique(owner[match])].tolist()]

    def scores(self, numbers: Sequence[int] | np.ndarray | slice, names: Sequence[str]) -> np.ndarray:
        """Returns (k, S) float64, the scores of k samples' answers by name; NaN where there is none."""
        sources, rows = self.sources[numbers], self._rows[numbers]
        scores = np.full((len(rows), len(names)), np.nan)
        for source in np.unique(sources).tolist() if names else ():
            mine = sources == source
            scores[mine] = self._tables[source].dialogues.scores(rows[mine], names)
        return scores

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        """Returns (k,) uint64, the hashes of k samples' answers."""
        sources, rows, answers = self.sources[numbers], self._rows[numbers], np.zeros(len(numbers), np.uint64)
        for source in np.unique(sources).tolist():
            mine, table = sources == source, self._tables[source]
            answers[mine] = table.dialogues.turns["segment"][table.answers(rows[mine])]
        return answers

    def voices(self) -> Voices:
        """Returns the answers of each person, where samples have people."""
        return Voices(self._people, self._spans, self)


class Voices:
    """The answers of each person, each once.

    Args:
        person: (n,) the person of each sample.
        span: (n,) the span of each sample.
        samples: The samples.
    """

    def __init__(self, person: np.ndarray, span: np.ndarray, samples: SampleIndex) -> None:
        self._samples, self._span, self._person = samples, span, person
        answer = samples.answers(np.arange(len(person)))
        order = np.lexsort((span, answer, person))
        first = np.full(len(order), False)
        first[:1] = True
        for column in (person, answer, span):
            in_order = column[order]
            first[1:] |= in_order[1:] != in_order[:-1]
        self._distinct = order[first].astype(np.int32)
        self._begin = person[self._distinct].searchsorted(np.arange(person.max(initial=-1) + 2))

    def of(self, number: int) -> list[tuple[str, int]]:
        """Returns (key, span) of every answer of a sample's person, that sample's own among them."""
        person = int(self._person[number])
        numbers = self._distinct[self._begin[person] : self._begin[person + 1]]
        answers = self._samples.answers(numbers).tolist()
        return [(key_of(answer), span) for answer, span in zip(answers, self._span[numbers].tolist(), strict=True)]


def _join(blocks: Sequence[Columns], name: str) -> np.ndarray:
    return np.concatenate([np.zeros(0, COLUMNS[name]), *(block[name].ravel() for block in blocks)])


def _places(codes: np.ndarray, grids: np.ndarray) -> np.ndarray:
    return codes.searchsorted(grids).astype("i2")
