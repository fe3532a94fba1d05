"""Sizes of frames on a command line and in a config: HEIGHTxWIDTH everywhere."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def parse_size(text: str) -> tuple[int, int]:
    """Returns the (height, width) of a size such as `480x768`, which is 480 pixels high and 768 wide.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not a size; give HEIGHTxWIDTH in pixels, such as 480x768 (landscape)")
    return int(match[1]), int(match[2])


def format_size(size: tuple[int, int]) -> str:
    """Returns the text of a (height, width), which `parse_size` reads."""
    height, width = size
    return f"{height}x{width}"
