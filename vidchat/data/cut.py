"""Clips out of source videos: by time and box, at the working rates, the others silenced.

A clip appears whole or not at all and the same clip always has the same bytes, so a run that was killed goes on where
it stopped and nobody can tell. Many machines share the work by `part`.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from vidchat.data.folder import entries, manifest_of, parse_entry
from vidchat.data.manifest import ManifestError, clip_file, open_manifest, videos
from vidchat.data.media import MediaError, crop_pictures, read_sound
from vidchat.data.silence import others, silence
from vidchat.data.tiers import is_silent
from vidchat.data.workers import each, write_whole
from vidchat.data.writer import ClipWriter
from vidchat.dialogue import Clip

SETTINGS, REPORT = "cut.json", "cut.report.json"
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")
CUT_COLUMNS = (
    *("clip", "source", "video", "media", "voice", "listens", "start_s", "end_s", "track_start_s", "track_end_s"),
    *("x1", "y1", "x2", "y2", "speech"),
)
UNSEEN = (64, 64)  # height and width of the black picture of a voice without a face


@dataclass(frozen=True)
class CutSettings:
    """How clips are cut; a folder holds clips of one setting.

    Attributes:
        fps: Pictures per second.
        sample_rate: Samples per second to which the sound is brought (the file's AAC runs at 48 kHz).
        longest_side: A larger crop is made smaller, to so many pixels; `None` keeps the source's pixels.
        window: `scene` cuts what the release's own script cuts; `track` only where the person is tracked.
        clean: Whether others are silenced where only they talk.
    """

    fps: int = 25
    sample_rate: int = 16000
    longest_side: int | None = None
    window: str = "scene"
    clean: bool = True


@dataclass
class CutReport:
    """What became of the clips.

    Attributes:
        counts: Of `cut`, `there already`, `left out`, `source missing`, `voices`, and of those cut `cut short`.
        missing: Source videos that are not on this disk.
        damage: (clip, why) of clips that could not be cut.
        short: (clip, why) of clips that are shorter than the manifest says, since their source ends before they do.
    """

    counts: Counter[str] = field(default_factory=Counter)
    missing: list[str] = field(default_factory=list)
    damage: list[tuple[str, str]] = field(default_factory=list)
    short: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: CutReport) -> None:
        self.counts.update(other.counts)
        self.missing += other.missing
        self.damage += other.damage
        self.short += other.short

    def as_json(self) -> dict[str, Any]:
        return {
            "counts": dict(sorted(self.counts.items())),
            "missing_videos": sorted(set(self.missing)),
            "left_out": [list(one) for one in sorted(self.damage)],
            "cut_short": [list(one) for one in sorted(self.short)],
        }


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
        manifest: The Parquet file.
        media: The folder of the source videos, each named by its id or as the manifest's `media` says.
        output: The data folder.
        settings: How to cut.
        wanted: Only these files, relative to the data folder; by default every clip, and the voice that a silent person
            hears.
        part: (k, n): of n machines that share the work the k-th, from 0.
        workers: Processes; `None` is one per CPU.
        dry_run: Only counts.

    Raises:
        ManifestError: The manifest cannot be read, there is no such media folder, or the data folder holds clips that
            were cut in another way.
    """
    total = open_manifest(manifest).metadata.num_rows
    if not media.is_dir():
        raise ManifestError(f"{media}: there is no such folder; set --media to the folder of the source videos")
    if not dry_run:
        _claim(output, settings)
    sources = _index(media)
    report = CutReport()
    job = partial(_cut_video, media=media, output=output, settings=settings, wanted=wanted, dry_run=dry_run)
    own = ((clips, _source(clips, sources)) for clips in videos(manifest, CUT_COLUMNS) if _mine(clips, part))
    with Progress() as progress:
        task = progress.add_task("cutting", total=total // part[1])
        for found in each(job, own, workers):
            report.add(found)
            progress.update(task, completed=sum(report.counts.values()))
    if not dry_run:
        name = REPORT if part[1] == 1 else f"cut.report.{part[0]}.json"
        write_whole(output / name, json.dumps(report.as_json(), indent=1) + "\n")
    return report


def _mine(clips: list[dict[str, Any]], part: tuple[int, int]) -> bool:
    return zlib.crc32(clips[0]["video"].encode()) % part[1] == part[0]


def _claim(output: Path, settings: CutSettings) -> None:
    """Notes how clips are cut, or refuses a folder with clips that were cut in another way."""
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
    write_whole(note, json.dumps(told, indent=1) + "\n")


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


def _cut_video(
    job: tuple[list[dict[str, Any]], str | None],
    media: Path,
    output: Path,
    settings: CutSettings,
    wanted: set[str] | None,
    dry_run: bool,
) -> CutReport:
    """Cuts the clips of one source video. One thread: the processes are as many as the CPUs."""
    torch.set_num_threads(1)
    clips, source = job
    report = CutReport()
    for clip in clips:
        for voice_only in (False, True):
            if voice_only and not (is_silent(clip) and (wanted is not None or clip["speech"])):
                continue
            try:
                name = clip_file(clip["clip"], clip["video"], voice_only)
                if wanted is not None and name not in wanted:
                    continue
                path = _inside(media, clip["media"] or source)
                if path is None:
                    report.counts["source missing"] += not voice_only
                    report.missing.append(clip["media"] or clip["video"])
                elif (output / name).is_file():
                    report.counts["there already"] += not voice_only
                else:
                    if not dry_run:
                        _forget(output / name)
                        seconds = (_write_voice if voice_only else _write_clip)(output / name, path, clip, settings)
                        _note_short(report, clip, seconds, settings)
                    report.counts["voices cut" if voice_only else "cut"] += 1
            except (MediaError, ManifestError, ValueError, OSError) as error:
                report.counts["left out"] += 1
                report.damage.append((clip["clip"], str(error)))
    return report


def _note_short(report: CutReport, clip: Mapping[str, Any], seconds: float, settings: CutSettings) -> None:
    start, end = _window(clip, settings)
    if seconds < end - start - 0.5:
        report.counts["cut short"] += 1
        report.short.append((clip["clip"], f"{seconds:.2f} s of {end - start:.2f}; its source ends there"))


def _inside(media: Path, name: str | None) -> Path | None:
    """A file of the media folder, if it is there; a manifest may come from a stranger."""
    if name is None or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        return None
    path = media / name
    return path if path.is_file() else None


def _forget(path: Path) -> None:
    """Removes what a killed run left of this clip."""
    for leftover in path.parent.glob(f".{_escaped(path.name)}.*.partial"):
        leftover.unlink(missing_ok=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _window(clip: Mapping[str, Any], settings: CutSettings) -> tuple[float, float]:
    """From when to when a clip is cut, in seconds of its source."""
    start, end = clip["start_s"], clip["end_s"]
    if settings.window == "track" and None not in (clip["track_start_s"], clip["track_end_s"]):
        start, end = max(start, clip["track_start_s"]), min(end, clip["track_end_s"])
    return start, end


def _span(path: Path, clip: Mapping[str, Any], settings: CutSettings) -> tuple[Clip, float]:
    """The clip in its source, and by how many seconds it begins later than the manifest's clip does."""
    start, end = _window(clip, settings)
    return Clip(path, "", start=start, end=end), start - clip["start_s"]


def _write_clip(target: Path, path: Path, clip: Mapping[str, Any], settings: CutSettings) -> float:
    """Returns how many seconds there were."""
    span, late = _span(path, clip, settings)
    box = tuple(clip[name] for name in ("x1", "y1", "x2", "y2"))
    whole = (0.0, 0.0, 1.0, 1.0) if None in box else (box[0], box[1], box[2], box[3])
    sound = _sound(span, late, clip, settings, clean=settings.clean)
    with closing(crop_pictures(span, whole, settings.fps, settings.longest_side)) as pictures:
        return _write(target, pictures, sound, settings)


def _write_voice(target: Path, path: Path, clip: Mapping[str, Any], settings: CutSettings) -> float:
    """What a silent person hears, under a black picture: whoever talks is not seen."""
    span, late = _span(path, clip, settings)
    sound = _sound(span, late, clip, settings, clean=False)
    count = max(1, round(((span.end or 0) - span.start) * settings.fps))
    return _write(target, iter([np.zeros((3, *UNSEEN), np.uint8)] * count), sound, settings)


def _sound(span: Clip, late: float, clip: Mapping[str, Any], settings: CutSettings, clean: bool) -> np.ndarray:
    rate = settings.sample_rate
    beside = span.path.with_suffix(".wav")  # where seamless_interaction has its cleaned sound
    own = clip["source"] == "seamless_interaction" and beside.is_file()
    length = round(((span.end or 0) - span.start) * settings.fps) * rate // settings.fps
    sound = read_sound(span, length, rate, beside if own else None)
    if not clean or clip["speech"] is None:
        return sound
    spans = [(start - late, end - late) for start, end in others(clip["speech"], clip["voice"])]
    return silence(sound, spans, rate)


def _write(target: Path, pictures: Iterator[np.ndarray], sound: np.ndarray, settings: CutSettings) -> float:
    """Second by second, so that a clip of any length and size fits into memory. Returns the seconds written."""
    each_picture = settings.sample_rate / settings.fps
    with ClipWriter(target, settings.fps, settings.sample_rate) as writer:
        for second in _seconds(pictures, settings.fps):
            begin = round(writer.pictures * each_picture)
            end = round((writer.pictures + len(second)) * each_picture)
            writer.write(torch.from_numpy(second), torch.from_numpy(sound[begin:end].copy()))
    return writer.pictures / settings.fps


def _seconds(pictures: Iterator[np.ndarray], fps: int) -> Iterator[np.ndarray]:
    while second := list(islice(pictures, fps)):
        yield np.stack(second)


def wanted_files(output: Path) -> set[str]:
    """The files that a data folder's dialogues name, relative to it.

    Raises:
        FolderError: There are no dialogues yet.
    """
    wanted: set[str] = set()
    for _, entry in entries(manifest_of(output)):
        wanted |= {turn["clip"] for turn in parse_entry(entry)["turns"]}
    return wanted
