"""`vidchat people --output DIR`: renders people who talk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from vidchat.playground.people.render import RenderSettings, render
from vidchat.playground.people.render_encounters import EncounterSettings, render_encounters
from vidchat.runtime.errors import user_errors
from vidchat.runtime.sizes import format_size, parse_size

SPLITS = EncounterSettings().splits


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command on its words, by default this process's."""
    defaults = RenderSettings()
    parser = argparse.ArgumentParser(prog="vidchat people", description="Renders people who talk.")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--dialogues", type=int, default=defaults.dialogues, help="questions with their answers")
    kinds.add_argument("--encounters", type=int, help="two people on one clock, several turns each")
    parser.add_argument("--pairings", type=int, default=defaults.pairings, help="questions to each training answer")
    parser.add_argument(
        "--splits", nargs="+", default=SPLITS, choices=SPLITS, help="splits of the encounters to render"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    size = format_size((defaults.height, defaults.width))
    parser.add_argument("--size", default=size, metavar="HEIGHTxWIDTH", help=f"size of the frames (default {size})")
    parser.add_argument("--fps", type=int, default=defaults.fps)
    parser.add_argument("--sample-rate", type=int, default=defaults.sample_rate)
    parser.add_argument("--workers", type=int, default=None, help="processes; one per CPU unless told")
    given = parser.parse_args(words)
    if given.encounters is None and tuple(given.splits) != SPLITS:
        parser.error("--splits applies to --encounters, not to --dialogues; leave it out")
    begun = time.monotonic()
    with user_errors():
        manifest = _render(given)
    what = f"{given.dialogues} dialogues" if given.encounters is None else f"{given.encounters} encounters"
    print(f"{what} in {time.monotonic() - begun:.0f} s: {manifest}")


def _render(given: argparse.Namespace) -> Path:
    height, width = parse_size(given.size)
    media = {"seed": given.seed, "height": height, "width": width, "fps": given.fps, "sample_rate": given.sample_rate}
    if given.encounters is None:
        return render(given.output, RenderSettings(given.dialogues, given.pairings, **media), given.workers)
    settings = EncounterSettings(given.encounters, pairings=given.pairings, splits=tuple(given.splits), **media)
    return render_encounters(given.output, settings, given.workers)


if __name__ == "__main__":
    main()
