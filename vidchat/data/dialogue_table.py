"""Millions of dialogues in little memory: compressed JSON, made into objects one at a time when they are asked for.

Everything lies in a few buffers, which processes that are forked share for good: objects they would copy, page by page,
as soon as they count references to them.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, get_args, overload

import numpy as np
import pyarrow as pa

from vidchat.dialogue import Branch, Dialogue, Split, Tier

BLOCK = 32  # texts that are compressed together: fewer take more memory, more take longer to get at one
SEPARATOR = b"\0"  # no JSON holds it
BRANCHES, TIERS, SPLITS = get_args(Branch), get_args(Tier), get_args(Split)


class DialogueTable(Sequence[Dialogue]):
    """Dialogues by number. Those added last are kept as they are until a block is full.

    Args:
        make: A dialogue's JSON to the dialogue.
    """

    def __init__(self, make: Callable[[str], Dialogue]) -> None:
        self._make = make
        self._packed, self._ends, self._sizes = bytearray(), array("q", [0]), array("i")
        self._waiting: list[bytes] = []
        self._kinds = bytearray()  # four bytes a dialogue: branch, tier, split, whether it has a question
        self._last: tuple[int, list[bytes]] = (-1, [])
        self._codec = pa.Codec("zstd", compression_level=1)

    def add(self, text: str, dialogue: Dialogue) -> None:
        """Appends a dialogue and the JSON it was made of."""
        self._kinds.append(BRANCHES.index(dialogue.branch))
        self._kinds.append(TIERS.index(dialogue.tier))
        self._kinds.append(SPLITS.index(dialogue.split))
        self._kinds.append(dialogue.question is not None)
        self._waiting.append(text.encode("utf-8", "surrogatepass"))
        if len(self._waiting) == BLOCK:
            whole = SEPARATOR.join(self._waiting)
            self._packed += self._codec.compress(whole, asbytes=True)
            self._ends.append(len(self._packed))
            self._sizes.append(len(whole))
            self._waiting = []

    def rows(
        self,
        split: Split | None = None,
        branch: Branch | None = None,
        tier: Tier | None = None,
        question: bool | None = None,
    ) -> np.ndarray:
        """(n,) the numbers of the dialogues that are as told, `None` being any, in order."""
        kinds = np.frombuffer(bytes(self._kinds), np.uint8).reshape(-1, 4)
        chosen = np.ones(len(kinds), bool)
        for column, (value, names) in enumerate(((branch, BRANCHES), (tier, TIERS), (split, SPLITS))):
            if value is not None:
                chosen &= kinds[:, column] == names.index(value)
        if question is not None:
            chosen &= kinds[:, 3] == question
        return np.flatnonzero(chosen)

    def __len__(self) -> int:
        return len(self._kinds) // 4

    @overload
    def __getitem__(self, row: int) -> Dialogue: ...
    @overload
    def __getitem__(self, row: slice) -> list[Dialogue]: ...
    def __getitem__(self, row: int | slice) -> Dialogue | list[Dialogue]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(f"dialogue {row} of {len(self)}")
        return self._make(self.text(row))

    def text(self, row: int) -> str:
        """The JSON of a dialogue."""
        block, within = divmod(int(row), BLOCK)
        if block == len(self._sizes):
            return self._waiting[within].decode("utf-8", "surrogatepass")
        if self._last[0] != block:  # neighbours are often asked for one after the other
            packed = memoryview(self._packed)[self._ends[block] : self._ends[block + 1]]
            whole = self._codec.decompress(packed, decompressed_size=self._sizes[block], asbytes=True)
            self._last = block, whole.split(SEPARATOR)
        return self._last[1][within].decode("utf-8", "surrogatepass")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": (-1, []), "_codec": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._codec = pa.Codec("zstd", compression_level=1)
