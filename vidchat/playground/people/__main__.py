"""`vidchat people --output DIR`: renders people who talk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from vidchat.playground.people.render import RenderSettings, render
from vidchat.runtime.errors import user_errors
from vidchat.runtime.sizes import format_size, parse_size


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on its words, by default this process's."""
    defaults = RenderSettings()
    parser = argparse.ArgumentParser(prog="vidchat people", description="Renders people who talk.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dialogues", type=int, default=defaults.dialogues)
    parser.add_argument("--pairings", type=int, default=defaults.pairings, help="questions to each training answer")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    size = format_size((defaults.height, defaults.width))
    parser.add_argument("--size", default=size, metavar="HEIGHTxWIDTH", help=f"size of the frames (default {size})")
    parser.add_argument("--fps", type=int, default=defaults.fps)
    parser.add_argument("--sample-rate", type=int, default=defaults.sample_rate)
    parser.add_argument("--workers", type=int, default=None, help="processes; one per CPU unless told")
    given = parser.parse_args(words)
    begun = time.monotonic()
    with user_errors():
        height, width = parse_size(given.size)
        shape = (height, width, given.fps, given.sample_rate)
        settings = RenderSettings(given.dialogues, given.pairings, given.seed, *shape)
        manifest = render(given.output, settings, given.workers)
    print(f"{given.dialogues} dialogues in {time.monotonic() - begun:.0f} s: {manifest}")


if __name__ == "__main__":
    main()
