"""Source videos that are missing, handed to yt-dlp: only on demand, and only what looks like a YouTube id."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}")


class FetchError(ValueError):
    """Why nothing can be downloaded, and what to do about it."""


def fetch(ids: Sequence[str], media: Path) -> int:
    """Downloads videos as `<id>.mp4` into a folder, one after another; returns how many are there afterwards.

    Raises:
        FetchError: yt-dlp is not installed, or there is no YouTube id among the ids.
    """
    program = shutil.which("yt-dlp")
    if program is None:
        raise FetchError("yt-dlp is not installed; install it with 'pip install yt-dlp' and run the same command again")
    youtube = [name for name in ids if _YOUTUBE.fullmatch(name)]
    if not youtube:
        raise FetchError("none of the missing files is a YouTube video; copy them into the media folder")
    for name in youtube:
        subprocess.run(command(program, name, media), check=False)
    return sum((media / f"{name}.mp4").is_file() for name in youtube)


def command(program: str, name: str, media: Path) -> list[str]:
    """The call for one video. Its address is built from the id, so that an id that begins with `-` is no option."""
    target = str(media / "%(id)s.%(ext)s")
    wanted = ["--format", "bv*[ext=mp4]+ba[ext=m4a]/b[ext=mp4]", "--merge-output-format", "mp4", "--no-playlist"]
    return [program, *wanted, "--output", target, f"https://www.youtube.com/watch?v={name}"]
