"""How the commands of `vidchat data` tell errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from vidchat.errors import plain_message


@contextmanager
def plainly() -> Iterator[None]:
    """An error that a person can put right is told in one sentence."""
    try:
        yield
    except Exception as error:
        message = plain_message(error)
        if message is None:
            raise
        print(message, file=sys.stderr)
        raise typer.Exit(1) from None
