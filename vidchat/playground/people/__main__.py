"""`python -m vidchat.playground.people --output DIR`: render people who talk."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from vidchat.errors import plainly
from vidchat.playground.people.render import RenderSettings, render


def main() -> None:
    defaults = RenderSettings()
    parser = argparse.ArgumentParser(prog="python -m vidchat.playground.people", description="Render talking heads.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--dialogues", type=int, default=defaults.dialogues)
    parser.add_argument("--pairings", type=int, default=defaults.pairings, help="questions to each training answer")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--size", type=int, nargs=2, default=(defaults.height, defaults.width), metavar=("H", "W"))
    parser.add_argument("--fps", type=int, default=defaults.fps)
    parser.add_argument("--sample-rate", type=int, default=defaults.sample_rate)
    parser.add_argument("--workers", type=int, default=None, help="processes; one per CPU unless told")
    given = parser.parse_args()
    height, width = given.size
    settings = RenderSettings(given.dialogues, given.pairings, given.seed, height, width, given.fps, given.sample_rate)
    begun = time.monotonic()
    with plainly():
        manifest = render(given.output, settings, given.workers)
    print(f"{given.dialogues} dialogues in {time.monotonic() - begun:.0f} s: {manifest}")


if __name__ == "__main__":
    main()
