"""Work for processes that die, in a module without imports, so that processes start fast."""

from __future__ import annotations

import os


def start(*_: object) -> None:
    """Prepares nothing."""


def half(number: int) -> float:
    """Returns half of an even number; 3 kills the process, other odd numbers raise."""
    if number == 3:
        os._exit(11)
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number / 2
