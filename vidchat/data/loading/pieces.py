"""Which turns of dialogues an answer is made from, by number of the turn, and which of them are encoded."""

from __future__ import annotations

import os

import numpy as np

from vidchat.data.loading.dialogues import Dialogues, ranges
from vidchat.data.loading.selection import Selection
from vidchat.data.tokens.encoder import Track
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.track_index import ABSENT, TrackIndex

BLOCK = 65536  # dialogues at a time, which bounds the memory that this takes


class Pieces:
    """The pieces of a folder's dialogues; the same as `Selection.segments` gives of one after the other.

    Args:
        cache: The folder's tokens.
        conditions: What answers are made from.
        dialogues: The folder's dialogues.
    """

    def __init__(self, cache: TokenCache, conditions: Selection, dialogues: Dialogues) -> None:
        self.cache, self.conditions, self.dialogues = cache, conditions, dialogues
        self._places: dict[Track, tuple[TrackIndex, np.ndarray]] = {}

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """(n,) the turns that are the answers of n dialogues."""
        return self.dialogues.first[rows] + self.dialogues.answer[rows]

    def questions(self, rows: np.ndarray) -> np.ndarray:
        """(n,) the turns that are the questions of n dialogues that have one."""
        return self.dialogues.first[rows] + self.dialogues.question[rows]

    def turns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(t,) the turns that condition the answers of n dialogues, and (t,) to which of the n each belongs."""
        dialogues, chosen = self.dialogues, self.conditions
        first = dialogues.first[rows]
        count = dialogues.first[rows + 1] - first
        owner, place = np.repeat(np.arange(len(rows)), count), ranges(np.zeros_like(first), count)
        question = place == dialogues.question[rows][owner]
        earlier = ~question & (place != dialogues.answer[rows][owner])
        kept = (question & chosen.initiator) | (earlier & chosen.earlier_turns)
        return (first[owner] + place)[kept], owner[kept]

    def encoded(self, rows: np.ndarray, look: bool = True) -> np.ndarray:
        """(n,) whether all pieces of n dialogues are encoded.

        Args:
            rows: (n,) the dialogues.
            look: Whether they must be encoded from the clips as they are now, where these are there.
        """
        some = [self._encoded(rows[first : first + BLOCK], look) for first in range(0, len(rows), BLOCK)]
        return np.concatenate(some) if some else np.zeros(0, bool)

    def _encoded(self, rows: np.ndarray, look: bool) -> np.ndarray:
        every = np.arange(len(rows))
        parts = [(self.answers(rows), every), self.turns(rows)]
        if self.conditions.features:
            parts.append((self.questions(rows), every))
        turns, owner = (np.concatenate(some) for some in zip(*parts, strict=True))
        stamps = self._stamps(turns, rows[owner]) if look else None
        lacking = np.zeros(len(rows), bool)
        for name, track in self.cache.tracks.items():
            mine = slice(len(turns) - len(rows), None) if name == "features" else slice(None)  # the questions alone
            told = None if stamps is None else (stamps[0][mine], stamps[1][mine])
            lacking[owner[mine][~track.index.good(self.places(name)[turns[mine]], told)]] = True
        return ~lacking

    def _stamps(self, turns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(t,) sizes and (t,) times of the clips of t turns of the dialogues `rows` (t,), as they are now."""
        dialogues = self.dialogues
        packed = self.cache.media.count > 0
        there = np.array([*(packed or os.path.isdir(dialogues.root / top) for top in dialogues.tops), True])
        sizes, times = np.full(len(turns), ABSENT), np.zeros(len(turns), np.uint64)
        for number in np.flatnonzero(there[dialogues.turns["top"][turns]]).tolist():
            row = int(rows[number])
            stamp = self.cache.stamp_of(dialogues.names(row)[int(turns[number] - dialogues.first[row])])
            sizes[number], times[number] = stamp or (ABSENT, 0)
        return sizes, times

    def count(self, rows: np.ndarray) -> int:
        """How many different pieces dialogues have."""
        some = [self.answers(rows), self.turns(rows)[0]] + [self.questions(rows)] * (self.conditions.features > 0)
        return len(np.unique(self.dialogues.turns["piece"][np.concatenate(some)]))

    def places(self, name: Track) -> np.ndarray:
        """(t,) int32 the rows of all turns' pieces in a track's index; -1 where it has none."""
        index = self.cache.tracks[name].index
        if name not in self._places or self._places[name][0] is not index:
            segments, order = self.dialogues.turns["piece"], self.dialogues.sorted
            self._places[name] = index, index.rows(segments, order)
        return self._places[name][1]

    def forget(self) -> None:
        """Lets go of what `places` keeps, which is 4 bytes a turn and track."""
        self._places.clear()
