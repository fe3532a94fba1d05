"""The segments that the samples of dialogues need, by the rows of their turns, and which of them are encoded."""

from __future__ import annotations

import os

import numpy as np

from vidchat.data.loading.dialogues import BRANCHES, ROLE_NAMES, Dialogues, ranges
from vidchat.data.loading.selection import Selection
from vidchat.data.tokens.encoder import Track
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.track_index import ABSENT, TrackIndex

BLOCK = 65536  # dialogues at a time, which bounds the memory that this takes


class SegmentTable:
    """The segments of a folder's dialogues; those that `Selection.segments` gives for one dialogue after the other.

    Args:
        cache: The tokens of the folder.
        selection: What samples are made from.
        dialogues: The dialogues of the folder.
    """

    def __init__(self, cache: TokenCache, selection: Selection, dialogues: Dialogues) -> None:
        self.cache, self.selection, self.dialogues = cache, selection, dialogues
        self._index_rows: dict[Track, tuple[TrackIndex, np.ndarray]] = {}

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """Returns (n,) whether each of n dialogues is one sample, rather than each turn of the responder."""
        whole = np.array([self.selection.whole(branch) for branch in BRANCHES])
        return whole[self.dialogues.branch[rows]]

    def turns(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (t,) the turns that the samples of n dialogues are made of, and (t,) the position of their dialogue.

        Both are in order.
        """
        first = self.dialogues.first[rows]
        count = self.dialogues.first[rows + 1] - first
        turns, owner = ranges(first, count), np.repeat(np.arange(len(rows)), count)
        used = self.whole(rows)[owner] | self.speaks(turns)
        return turns[used], owner[used]

    def speaks(self, turns: np.ndarray) -> np.ndarray:
        """Returns (t,) whether turns are of the responder."""
        return self.dialogues.turns["role"][turns] == ROLE_NAMES.index("responder")

    def answers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the first turn of the responder in each sample of n dialogues, and the position of its dialogue."""
        turns, owner = self.turns(rows)
        turns, owner = (column[self.speaks(turns)] for column in (turns, owner))
        first = np.append(True, owner[1:] != owner[:-1])[: len(owner)] | ~self.whole(rows)[owner]
        return turns[first], owner[first]

    def questions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the turns that n dialogues' samples answer, and the position of their dialogue."""
        turns, owner = self.answers(rows)
        back = self.dialogues.turns["back"][turns]
        return (turns - back)[back > 0], owner[back > 0]

    def needed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns (t,) all turns that n dialogues need, and (t,) the position of their dialogue.

        The last of them are the questions that a thinker sees; their number is returned, too.
        """
        turns, owner = self.turns(rows)
        if not self.selection.features:
            return turns, owner, 0
        questions, asked = self.questions(rows)
        return np.concatenate([turns, questions]), np.concatenate([owner, asked]), len(questions)

    def encoded(self, rows: np.ndarray, check_clips: bool = True) -> np.ndarray:
        """Returns (n,) whether all segments of n dialogues are encoded.

        Args:
            rows: (n,) the dialogues.
            check_clips: Whether they must be encoded from the clips as they are now, where these are there.
        """
        blocks = (rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK))
        return np.concatenate([np.zeros(0, bool), *(self._encoded(block, check_clips) for block in blocks)])

    def _encoded(self, rows: np.ndarray, check_clips: bool) -> np.ndarray:
        turns, owner, asked = self.needed(rows)
        stamps = self._stamps(turns, rows[owner]) if check_clips else None
        lacking = np.zeros(len(rows), bool)
        for name, track in self.cache.tracks.items():
            mine = slice(len(turns) - asked if name == "features" else 0, None)
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
