"""Encodes a folder of films, killed again and again: `python killing.py ROOT OUTPUT KILLS`.

Each attempt is a fork that is killed (SIGKILL) after a random time; this process itself touches no media.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from folders import SIZE, Codec, Vae
from torch import Tensor

from vidchat.data.tokens import encode, windows
from vidchat.data.tokens.cache import TokenCache
from vidchat.data.tokens.encoder import ClipEncoder, Piece
from vidchat.dialogue import Clip

windows.WINDOW = 1  # a piece at a time
SHARDING = encode.Sharding(pieces=4, bytes=20_000)


class Slow(Vae):
    """Takes its time, and writes down each piece that it encodes."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def encode(self, pictures: Tensor) -> Tensor:
        with self.log.open("a") as file:
            file.write("1\n")
        time.sleep(0.005)
        return super().encode(pictures)


def pieces(root: Path) -> list[Piece]:
    """Every film in six parts, so that there is something to do."""
    films = sorted(root.glob("[0-9].mp4"))
    return [Piece(Clip(film, "ann", start=k * 0.04), "first", 4) for film in films for k in range(4)]


def run(root: Path, folder: Path) -> None:
    cache = TokenCache(root, ClipEncoder(Slow(folder.with_suffix(".log")), Codec(), 25, SIZE), 4, folder=folder)
    encode.fill(cache, pieces(root), sharding=SHARDING)


def forked(root: Path, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run(root, folder)
        status = 0
    finally:
        os._exit(status)


def attempt(root: Path, folder: Path, seconds: float | None) -> Any:
    """The fork's exit code, or `None` if it was killed."""
    child = forked(root, folder)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main() -> None:
    root, output, wanted = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    output.mkdir(parents=True)
    torch.set_num_threads(1)
    chance, kills = random.Random(0), 0
    begin = time.monotonic()
    assert attempt(root, output / "whole", None) == 0
    whole = time.monotonic() - begin
    while kills < wanted:
        code = attempt(root, output / "torn", chance.uniform(0, 2 * whole / wanted))
        kills += code is None
        if code == 0:  # done before it was killed: whatever is left to kill is looking at what is there
            kills += 1
    assert attempt(root, output / "torn", None) == 0
    encoded = len((output / "torn.log").read_text().splitlines())
    print(json.dumps({"kills": kills, "pieces": len(pieces(root)), "encoded": encoded}))


if __name__ == "__main__":
    main()
