"""Whether an mp4 says how late its streams start, read from its boxes (ISO/IEC 14496-12, 4.2 and 8.6.6)."""

from __future__ import annotations

import struct
from pathlib import Path

HEADER = 8
LARGEST_INDEX = 64 << 20  # bytes of `moov` that are looked at


def has_edit_list(path: Path) -> bool:
    """True where the file's index has an edit list, which tells the delays of encoders; fragmented files often don't.

    A file without an index, or cut off inside it, counts as having one: its timestamps are then all there is to go by.
    """
    with path.open("rb") as file:
        while len(header := file.read(HEADER)) == HEADER:
            size, kind = struct.unpack(">I4s", header)
            body = size - HEADER
            if size == 1:  # a 64-bit size follows
                size = int.from_bytes(file.read(8), "big")
                body = size - HEADER - 8
            if kind == b"moov":
                return b"elst" in file.read(min(body, LARGEST_INDEX))
            if body < 0:  # "to the end of the file", or nonsense
                return True
            file.seek(body, 1)
    return True
