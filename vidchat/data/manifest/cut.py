"""Clips out of source videos: by time and box, at the working rates, the others silenced.

A clip appears whole or not at all and the same clip always has the same bytes, so a run that was killed goes on where
it stopped and nobody can tell. Many machines share the work by `part`.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from vidchat.data.folder import entries, make_dialogue, manifest_of, parse_entry
from vidchat.data.manifest.cut_video import CutReport, CutSettings, cut_video
from vidchat.data.manifest.manifest_file import ManifestError, open_manifest, videos
from vidchat.data.workers import parallel_map
from vidchat.runtime.atomic import write_text

log = logging.getLogger(__name__)
SETTINGS, REPORT = "cut.json", "cut.report.json"
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
CUT_COLUMNS = (
    *("clip", "source", "video", "media", "voice", "listens", "start_s", "end_s", "track_start_s", "track_end_s"),
    *("x1", "y1", "x2", "y2", "speech"),
)


def cut(
    manifest: Path,
    media: Path,
    output: Path,
    settings: CutSettings,
    *,
    wanted: set[str] | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    dry_run: bool = False,
) -> CutReport:
    """Cuts the clips of a manifest into a data folder, and writes `cut.report.json` there.

    Args:
        manifest: Manifest, a Parquet file.
        media: Folder of the source videos, each named by its id or as the manifest's `media` says.
        output: Data folder.
        settings: Rates, size and span of the clips.
        wanted: Files to cut, relative to the data folder; by default every clip, and the voice that a silent person
            hears.
        part: Share (k, n) of the source videos: the k-th, from 0, of n.
        workers: Number of processes; `None` is one per CPU.
        dry_run: Whether to count only.

    Raises:
        ManifestError: The manifest cannot be read, there is no such media folder, or the data folder holds clips that
            were cut in another way.
    """
    total = open_manifest(manifest).metadata.num_rows
    if not media.is_dir():
        raise ManifestError(f"{media}: there is no such folder; name the folder of the source videos")
    if not dry_run:
        _claim(output, settings)
    sources = _index(media)
    report = CutReport()
    job = partial(cut_video, media=media, output=output, settings=settings, wanted=wanted, dry_run=dry_run)
    own = ((clips, _source(clips, sources)) for clips in videos(manifest, CUT_COLUMNS) if _mine(clips, part))
    with Progress() as progress:
        task = progress.add_task("cutting", total=total // part[1])
        for found in parallel_map(job, own, workers):
            report.add(found)
            progress.update(task, completed=sum(report.counts.values()))
    if not dry_run:
        name = REPORT if part[1] == 1 else f"cut.report.{part[0]}.json"
        write_text(output / name, json.dumps(report.as_json(), indent=1) + "\n")
    return report


def _mine(clips: list[dict[str, Any]], part: tuple[int, int]) -> bool:
    return zlib.crc32(clips[0]["video"].encode()) % part[1] == part[0]


def _claim(output: Path, settings: CutSettings) -> None:
    """Records how clips are cut, or refuses a folder with clips that were cut in another way."""
    note, told = output / SETTINGS, asdict(settings)
    output.mkdir(parents=True, exist_ok=True)
    if note.is_file():
        found = json.loads(note.read_text())
        differing = [key for key in told if found.get(key) != told[key]]
        if differing:
            key = differing[0]
            raise ManifestError(
                f"{output} holds clips cut with {key}={found.get(key)}, not {told[key]}; choose another --output"
            )
    write_text(note, json.dumps(told, indent=1) + "\n")


def _index(media: Path) -> dict[str, str]:
    """Source videos by id. The release's users name a file `<id>.mp4`, or as its annotations do."""
    found: dict[str, str] = {}
    for place, folders, names in os.walk(media):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                path = (Path(place) / name).relative_to(media).as_posix()
                found.setdefault(stem, path)
                if "_full_video" in stem[11:]:
                    found.setdefault(stem[:11], path)
    return found


def _source(clips: list[dict[str, Any]], sources: Mapping[str, str]) -> str | None:
    """The file that holds a video's clips, unless each names its own."""
    return sources.get(clips[0]["video"])


def wanted_files(output: Path) -> set[str]:
    """The files that a data folder's dialogues name, relative to it.

    Raises:
        FolderError: There are no dialogues yet.
    """
    wanted: set[str] = set()
    for where, entry in entries(manifest_of(output)):
        try:
            dialogue = make_dialogue(output, parse_entry(entry), media=False)
        except (ValueError, TypeError, OSError) as error:
            log.warning("skipped %s: %s", where, error)
            continue
        wanted |= {turn.clip.path.relative_to(output).as_posix() for turn in dialogue.turns}
    return wanted
