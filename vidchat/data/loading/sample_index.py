"""The samples that can be drawn, as columns: the dialogue, turn, span, lengths and shape of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from vidchat.data.index import Columns
from vidchat.data.loading.sample import Sample, make_sample
from vidchat.data.loading.segment_table import SegmentTable
from vidchat.data.tokens.track_index import key_of

COLUMNS = {"source": "i2", "row": "i4", "turn": "u4", "span": "i4", "lengths": "i4", "grid": "u4", "person": "i4"}


class SampleIndex:
    """The samples of one split of all sources.

    Args:
        tables: The segments of each source's folder.
        blocks: Columns of consecutive samples, in the types of `COLUMNS`: (n, 2) for `lengths`, (n,) for the others.
            `grid` is h << 16 | w. `person` is there if voices are drawn.

    Attributes:
        grids: (h, w) of all latents, sorted.
        sources: (n,) the source of each sample.
        lengths: (n, 2) about how many columns of said and of heard chunks each sample has, to batch those alike.
        shapes: (n,) the index in `grids` of each sample's grid.
    """

    def __init__(self, tables: Sequence[SegmentTable], blocks: Sequence[Columns]) -> None:
        self._tables = list(tables)
        codes = np.unique(np.concatenate([np.zeros(0, "u4"), *(np.unique(block["grid"]) for block in blocks)]))
        self.grids: list[tuple[int, int]] = [(code >> 16, code & 0xFFFF) for code in codes.tolist()]
        self.sources = _join(blocks, "source")
        self.lengths = _join(blocks, "lengths").reshape(-1, 2)
        self.shapes = np.concatenate([np.zeros(0, "i2"), *(_places(codes, block["grid"]) for block in blocks)])
        self._rows, self._turns, self._spans = (_join(blocks, name) for name in ("row", "turn", "span"))
        self._people = _join([block for block in blocks if "person" in block], "person")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        source, grid = int(self.sources[number]), self.grids[self.shapes[number]]
        turn, row, span = (int(column[number]) for column in (self._turns, self._rows, self._spans))
        return make_sample(self._tables[source], source, turn, row, span, grid)

    def dialogues_of(self, segments: Collection[int], source: int) -> list[str]:
        """Returns the ids of a source's dialogues that need one of some segments, given by their hashes."""
        table, rows = self._tables[source], np.unique(self._rows[self.sources == source])
        turns, owner, _ = table.needed(rows)
        match = np.isin(table.dialogues.turns["segment"][turns], np.fromiter(segments, np.uint64, len(segments)))
        return [table.dialogues[row].id for row in rows[np.unique(owner[match])].tolist()]

    def scores(self, numbers: Sequence[int] | np.ndarray | slice, names: Sequence[str]) -> np.ndarray:
        """Returns (k, S) float64, the scores of k samples' first turns of the responder; NaN where there is none."""
        sources, turns = self.sources[numbers], self._turns[numbers]
        scores = np.full((len(turns), len(names)), np.nan)
        for source in np.unique(sources).tolist() if names else ():
            mine = sources == source
            scores[mine] = self._tables[source].dialogues.scores(turns[mine], names)
        return scores

    def answers(self, numbers: np.ndarray) -> np.ndarray:
        """Returns (k,) uint64, the hashes of k samples' first turns of the responder."""
        sources, turns, answers = self.sources[numbers], self._turns[numbers], np.zeros(len(numbers), np.uint64)
        for source in np.unique(sources).tolist():
            mine = sources == source
            answers[mine] = self._tables[source].dialogues.turns["segment"][turns[mine]]
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
