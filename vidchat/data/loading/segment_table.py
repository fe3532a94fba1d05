"""The segments that the answers of dialogues need, by the rows of their turns, and which of them are encoded."""

from __future__ import annotations

import os

import numpy as np

from vidchat.data.loading.dialogues import Dialogues, ranges
from vidchat.data.loading.selection import Selection
from vidchat.data.tokens.encoder import Track
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.track_index import ABSENT, TrackIndex

BLOCK = 65536  # dialogues at a time, which bounds the memory that this takes


class SegmentTable:
    """The segments of a folder's dialogues; those that `Selection.segments` gives for one dialogue after the other.

    Args:
        cache: The tokens of the folder.
        selection: What answers are made from.
        dialogues: The dialogues of the folder.
    """

    def __init__(self, cache: TokenCache, selection: Selection, dialogues: Dialogues) -> None:
        self.cache, self.selection, self.dialogues = cache, selection, dialogues
        self._index_rows: dict[Track, tuple[TrackIndex, np.ndarray]] = {}

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """Returns (n,) the turns that are the answers of n dialogues."""
        return self.dialogues.first[rows] + self.dialogues.answer[rows]

    def questions(self, rows: np.ndarray) -> np.ndarray:
        """Returns (n,) the turns that are the questions of n dialogues that have one."""
        return self.dialogues.first[rows] + self.dialogues.question[rows]

    def turns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (t,) the turns that condition the answers of n dialogues, and (t,) the position of their dialogue."""
        dialogues, selection = self.dialogues, self.selection
        first = dialogues.first[rows]
        count = dialogues.first[rows + 1] - first
        owner, position = np.repeat(np.arange(len(rows)), count), ranges(np.zeros_like(first), count)
        question = position == dialogues.question[rows][owner]
        earlier = ~question & (position != dialogues.answer[rows][owner])
        used = (question & selection.initiator) | (earlier & selection.earlier_turns)
        return (first[owner] + position)[used], owner[used]

    def needed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (t,) all turns that n dialogues need, and (t,) the position of their dialogue.

        The last n are the questions that a thinker sees, if there is a thinker.
        """
        every = np.arange(len(rows))
        parts = [(self.answers(rows), every), self.turns(rows)]
        if self.selection.features:
            parts.append((self.questions(rows), every))
        turns, owner = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return turns, owner

    def encoded(self, rows: np.ndarray, check_clips: bool = True) -> np.ndarray:
        """Returns (n,) whether all segments of n dialogues are encoded.

        Args:
            rows: (n,) the dialogues.
            check_clips: Whether they must be encoded from the clips as they are now, where these are there.
        """
        blocks = (rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK))
        return np.concatenate([np.zeros(0, bool), *(self._encoded(block, check_clips) for block in blocks)])

    def _encoded(self, rows: np.ndarray, check_clips: bool) -> np.ndarray:
        turns, owner = self.needed(rows)
        stamps = self._stamps(turns, rows[owner]) if check_clips else None
        lacking = np.zeros(len(rows), bool)
        for name, track in self.cache.tracks.items():
            mine = slice(len(turns) - len(rows), None) if name == "features" else slice(None)  # the questions alone
            theirs = None if stamps is None else (stamps[0][mine], stamps[1][mine])
            lacking[owner[mine][~track.index.good(self.index_rows(name)[turns[mine]], theirs)]] = True
        return ~lacking

    def _stamps(self, turns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (t,) sizes and (t,) times of the clips of t turns, as they are now; rows (t,) are their dialogues."""
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
        """Returns how many different segments dialogues need."""
        return len(np.unique(self.dialogues.turns["segment"][self.needed(rows)[0]]))

    def index_rows(self, name: Track) -> np.ndarray:
        """Returns (t,) int32, the rows of all turns' segments in a track's index; -1 where it has none."""
        index = self.cache.tracks[name].index
        if name not in self._index_rows or self._index_rows[name][0] is not index:
            segments, order = self.dialogues.turns["segment"], self.dialogues.sorted
            self._index_rows[name] = index, index.rows(segments, order)
        return self._index_rows[name][1]

    def forget(self) -> None:
        """Frees what `index_rows` keeps, which is 4 bytes a turn and track."""
        self._index_rows.clear()
