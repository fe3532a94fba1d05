"""Cutting clips out of source videos by time and box, at the working rates, with other speakers silenced.

A clip is written atomically and always has the same bytes, so a killed run resumes where it stopped with an identical
result. Several machines share the work by `part`.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
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
    *("clip", "source", "video", "media", "voice", "listens", "start_s", "end_s"),
    *("x1", "y1", "x2", "y2", "speech"),
)


def cut(
    manifest: Path,
    media: Path,
    output: Path,
    settings: CutSettings,
    *,
    selected: set[str] | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int | None = None,
    dry_run: bool = False,
) -> CutReport:
    """Cuts the clips of a manifest into a data folder, and writes `cut.report.json` there.

    Args:
        manifest: Manifest, a Parquet file.
        media: Folder of the source videos, each named by its id or as the manifest's `media` says.
        output: Data folder.
        settings: Rates and size of the clips.
        selected: Files to cut, relative to the data folder; by default all clips, and the voices that silent
            people hear.
        part: Share (k, n) of the source videos: share k, from 0, of n.
        workers: Number of processes; `None` is one per CPU.
        dry_run: Whether to count the clips without cutting them.

    Raises:
        ManifestError: The manifest cannot be read, the media folder does not exist, or the data folder holds clips that
            were cut with other settings.
    """
    total = open_manifest(manifest).metadata.num_rows
    if not media.is_dir():
        raise ManifestError(f"{media}: there is no such folder; give the folder of the source videos")
    if not dry_run:
        _claim(output, settings)
    sources = _index_media(media)
    report = CutReport()
    job = partial(cut_video, media=media, output=output, settings=settings, selected=selected, dry_run=dry_run)
    jobs = ((clips, sources.get(clips[0]["video"])) for clips in videos(manifest, CUT_COLUMNS) if _in_part(clips, part))
    with Progress() as progress:
        task = progress.add_task("cutting", total=total // part[1])
        for outcome in parallel_map(job, jobs, workers):
            report.add(outcome)
            progress.update(task, completed=sum(report.counts.values()))
    if not dry_run:
        name = REPORT if part[1] == 1 else f"cut.report.{part[0]}.json"
        write_text(output / name, json.dumps(report.as_json(), indent=1) + "\n")
    return report


def _in_part(clips: list[dict[str, Any]], part: tuple[int, int]) -> bool:
    return zlib.crc32(clips[0]["video"].encode()) % part[1] == part[0]


def _claim(output: Path, settings: CutSettings) -> None:
    """Records the settings in the data folder; refuses a folder whose clips were cut with other settings."""
    path, current = output / SETTINGS, asdict(settings)
    output.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        recorded = json.loads(path.read_text())
        differing = [key for key in current if recorded.get(key) != current[key]]
        if differing:
            key = differing[0]
            raise ManifestError(
                f"{output} holds clips cut with {key}={recorded.get(key)}, not {current[key]}; choose another --output"
            )
    write_text(path, json.dumps(current, indent=1) + "\n")


def _index_media(media: Path) -> dict[str, str]:
    """Returns the path of each source video by its id; files are named `<id>.mp4` or as in the annotations."""
    index: dict[str, str] = {}
    for folder, folders, names in os.walk(media):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                path = (Path(folder) / name).relative_to(media).as_posix()
                index.setdefault(stem, path)
                if "_full_video" in stem[11:]:
                    index.setdefault(stem[:11], path)
    return index


def dialogue_files(output: Path) -> set[str]:
    """Returns the files that the dialogues of a data folder name, relative to the folder.

    Raises:
        FolderError: The folder has no dialogues yet.
    """
    files: set[str] = set()
    for where, entry in entries(manifest_of(output)):
        try:
            dialogue = make_dialogue(output, parse_entry(entry), media=False)
        except (ValueError, TypeError, OSError) as error:
            log.warning("skipped %s: %s", where, error)
            continue
        files |= {turn.clip.path.relative_to(output).as_posix() for turn in dialogue.turns}
    return files
