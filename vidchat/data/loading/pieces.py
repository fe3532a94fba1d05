"""Of every dialogue of a folder the pieces it is made of, as columns: noted once, while the manifest is read.

So neither finding out what is encoded nor listing the answers makes millions of dialogues again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xxhash

from vidchat.data.columns import Columns
from vidchat.data.loading.conditions import Conditions
from vidchat.data.loading.items import PARTS, ROLE_NAMES
from vidchat.data.tokens.cache import TokenCache
from vidchat.data.tokens.encoder import Piece
from vidchat.data.tokens.track_index import ABSENT
from vidchat.dialogue import Dialogue, Role

BLOCK = 65536  # dialogues at a time, which bounds the memory that this takes
NAN = float("nan")


class Pieces:
    """The pieces of dialogues, each dialogue's in the order of `Conditions.pieces`, and who answers how well.

    Args:
        cache: Of the folder's tokens.
        conditions: What answers are made from.
        wanted: Of which dialogues pieces are noted; others have none.
    """

    def __init__(self, cache: TokenCache, conditions: Conditions, wanted: Callable[[Dialogue], bool]) -> None:
        self._cache, self.conditions, self._wanted = cache, conditions, wanted
        self._dialogues = Columns(first="q", count="i", person="Q")
        self._columns = Columns(key="Q", size="q", time="Q", part="b", role="b")
        self._scores = Columns(**dict.fromkeys(conditions.scores, "d")) if conditions.scores else None

    def add(self, dialogue: Dialogue) -> None:
        """Notes the next dialogue of the folder, and how its clips are now."""
        first, chosen = len(self._columns), self.conditions
        if self._wanted(dialogue):
            self._note(chosen.answer(dialogue), "responder")
            for piece, role in chosen.turns(dialogue):
                self._note(piece, role)
            question = chosen.question(dialogue)
            if question is not None:
                self._note(question, "initiator")
        answer, person = dialogue.answer, 0
        if chosen.voice:
            person = xxhash.xxh3_64_intdigest(answer.speaker.encode("utf-8", "surrogatepass"))
        self._dialogues.add(first, len(self._columns) - first, person)
        if self._scores is not None:
            self._scores.add(*(answer.scores.get(name, NAN) for name in chosen.scores))

    def _note(self, piece: Piece, role: Role) -> None:
        size, time = self._cache.stamp(piece.clip) or (ABSENT, 0)
        self._columns.add(self._cache.number(piece), size, time, PARTS.index(piece.part), ROLE_NAMES.index(role))

    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """(n,) of n dialogues, whether all of their pieces are encoded, from the clips as they were when noted."""
        some = [self._encoded(rows[first : first + BLOCK]) for first in range(0, len(rows), BLOCK)]
        return np.concatenate(some) if some else np.zeros(0, bool)

    def _encoded(self, rows: np.ndarray) -> np.ndarray:
        count = self._dialogues.view("count")[rows]
        pieces = ranges(self.first(rows), count)
        keys, sizes, times = (self._columns.view(name)[pieces] for name in ("key", "size", "time"))
        lacking = np.zeros(len(pieces), bool)
        for name, track in self._cache.tracks.items():
            # A thinker sees a dialogue's last piece alone.
            some = np.cumsum(count) - 1 if name == "features" else np.arange(len(pieces))
            lacking[some] |= ~track.index.good(keys[some], sizes[some], times[some])
        owners = np.repeat(np.arange(len(rows)), count)
        return np.bincount(owners[lacking], minlength=len(rows)) == 0

    def count(self, rows: np.ndarray) -> int:
        """How many different pieces dialogues have."""
        return len(np.unique(self.column("key", ranges(self.first(rows), self._dialogues.view("count")[rows]))))

    def first(self, rows: np.ndarray) -> np.ndarray:
        """(n,) of n dialogues the numbers of their first pieces: the answers."""
        return self._dialogues.view("first")[rows]

    def turns(self, rows: np.ndarray) -> np.ndarray:
        """(n,) of n dialogues, how many pieces are turns; they follow the answer. A thinker's question comes last."""
        return self._dialogues.view("count")[rows] - 1 - (self.conditions.features > 0)

    def column(self, name: str, pieces: np.ndarray) -> np.ndarray:
        """(p,) of p pieces their `key` (uint64, the number that stands for it), `part` or `role` (see `Answers`)."""
        return self._columns.view(name)[pieces]

    def people(self, rows: np.ndarray) -> np.ndarray:
        """(n,) uint64 of n dialogues who answers, as a hash of the name; 0 where no voice conditions."""
        return self._dialogues.view("person")[rows]

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """(n, S) float64 the scores of n dialogues' answers, NaN where there is none."""
        if self._scores is None:
            return np.zeros((len(rows), 0))
        return np.stack([self._scores.view(name)[rows] for name in self.conditions.scores], axis=1)


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(sum of count,) first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum())
