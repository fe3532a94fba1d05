"""Work for processes that die, in a module that imports nothing, so that they start at once."""

from __future__ import annotations

import os


def start(*_: object) -> None:
    """Nothing to prepare."""


def half(thing: int) -> float:
    """Half of an even number; 3 takes its process with it, other odd ones fail."""
    if thing == 3:
        os._exit(11)
    if thing % 2:
        raise ValueError(f"{thing} is odd")
    return thing / 2
