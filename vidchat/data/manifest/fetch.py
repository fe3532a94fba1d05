"""Download of missing source videos by yt-dlp, on request and for YouTube ids only."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}")


class FetchError(ValueError):
    """A download that cannot start; the message says why and what to do."""


def fetch(ids: Sequence[str], media: Path) -> int:
    """Downloads videos as `<id>.mp4` into a folder, one after another; returns the number of these that then exist.

    Raises:
        FetchError: yt-dlp is not installed, or none of the ids is a YouTube id.
    """
    program = shutil.which("yt-dlp")
    if program is None:
        raise FetchError("yt-dlp is not installed; install it with 'pip install yt-dlp' and run the same command again")
    youtube = [name for name in ids if _YOUTUBE.fullmatch(name)]
    if not youtube:
        raise FetchError("none of the missing files is a YouTube video; copy them into the media folder")
    for name in youtube:
        subprocess.run(download_command(program, name, media), check=False)
    return sum((media / f"{name}.mp4").is_file() for name in youtube)


def download_command(program: str, name: str, media: Path) -> list[str]:
    """Returns the command for one video. It names the URL, as an id that begins with `-` would be read as an option."""
    target = str(media / "%(id)s.%(ext)s")
    options = ["--format", "bv*[ext=mp4]+ba[ext=m4a]/b[ext=mp4]", "--merge-output-format", "mp4", "--no-playlist"]
    return [program, *options, "--output", target, f"https://www.youtube.com/watch?v={name}"]
