"""Cutting the clips of one source video by time and box, at the working rates, with other speakers silenced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidchat.data.atomic_path import remove_partials
from vidchat.data.manifest.manifest_file import ManifestError, clip_file
from vidchat.data.manifest.silence import other_speech, silence
from vidchat.data.manifest.tiers import is_silent
from vidchat.data.media.read import MediaError, crop_frames, read_audio
from vidchat.data.media.write import ClipWriter
from vidchat.dialogue import Clip

UNSEEN = (64, 64)  # (height, width) of the black frames under the voice of an unseen talker


@dataclass(frozen=True)
class CutSettings:
    """Rates and size of the clips; all clips of a folder are cut with the same settings.

    Attributes:
        fps: Frames per second.
        sample_rate: Audio samples per second before the file's AAC, which runs at 48 kHz.
        longest_side: Longest side of a clip in pixels; larger crops are scaled down, null keeps the source's pixels.
        clean: Whether the audio is silenced where only other speakers talk.
    """

    fps: int = 25
    sample_rate: int = 16000
    longest_side: int | None = None
    clean: bool = True

    def __post_init__(self) -> None:
        sides = 2 if self.longest_side is None else self.longest_side
        if self.fps < 1 or self.sample_rate < 1 or sides < 2:
            raise ValueError("fps and sample_rate must be at least 1, and longest_side at least 2")


@dataclass
class CutReport:
    """Outcome of cutting clips.

    Attributes:
        counts: Number of clips by outcome: `cut`, `there already`, `left out`, `source missing`, `voices cut`; clips
            that are cut may also be `cut short`.
        missing: Source videos that do not exist in the media folder.
        damage: (clip, reason) of clips that could not be cut.
        short: (clip, reason) of clips that are shorter than in the manifest because their source ends early.
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
            "left_out": [list(entry) for entry in sorted(self.damage)],
            "cut_short": [list(entry) for entry in sorted(self.short)],
        }


def cut_video(
    job: tuple[list[dict[str, Any]], str | None],
    media: Path,
    output: Path,
    settings: CutSettings,
    selected: set[str] | None,
    dry_run: bool,
) -> CutReport:
    """Cuts the clips of one source video on one thread; there is one process per CPU.

    Args:
        job: Rows of the clips, and the source video relative to `media`, for clips that do not name their own file.
        media: Folder of the source videos.
        output: Data folder.
        settings: Rates and size of the clips.
        selected: Files to cut, relative to the data folder; `None` is all.
        dry_run: Whether to count the clips without cutting them.
    """
    torch.set_num_threads(1)
    clips, source = job
    report = CutReport()
    for clip in clips:
        for voice_only in (False, True):
            if voice_only and not (is_silent(clip) and (selected is not None or clip["speech"])):
                continue
            try:
                name = clip_file(clip["clip"], clip["video"], voice_only)
                if selected is not None and name not in selected:
                    continue
                path = _find_source(media, clip["media"] or source)
                if path is None:
                    report.counts["source missing"] += not voice_only
                    report.missing.append(clip["media"] or clip["video"])
                elif (output / name).is_file():
                    report.counts["there already"] += not voice_only
                else:
                    if not dry_run:
                        remove_partials(output / name)
                        seconds = (_write_voice if voice_only else _write_clip)(output / name, path, clip, settings)
                        _note_short(report, clip, seconds)
                    report.counts["voices cut" if voice_only else "cut"] += 1
            except (MediaError, ManifestError, ValueError, OSError) as error:
                report.counts["left out"] += 1
                report.damage.append((clip["clip"], str(error)))
    return report


def _note_short(report: CutReport, clip: Mapping[str, Any], seconds: float) -> None:
    start, end = clip["start_s"], clip["end_s"]
    if seconds < end - start - 0.5:
        report.counts["cut short"] += 1
        report.short.append((clip["clip"], f"{seconds:.2f} s of {end - start:.2f}; its source ends there"))


def _find_source(media: Path, name: str | None) -> Path | None:
    """Returns the path of a file inside the media folder, `None` if there is none; manifests are not trusted."""
    if name is None or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name:
        return None
    path = media / name
    return path if path.is_file() else None


def _span(path: Path, clip: Mapping[str, Any]) -> Clip:
    return Clip(path, "", start=clip["start_s"], end=clip["end_s"])


def _write_clip(target: Path, path: Path, clip: Mapping[str, Any], settings: CutSettings) -> float:
    """Writes the clip; returns its duration in seconds."""
    span = _span(path, clip)
    box = tuple(clip[name] for name in ("x1", "y1", "x2", "y2"))
    crop = (0.0, 0.0, 1.0, 1.0) if None in box else (box[0], box[1], box[2], box[3])
    audio = _audio(span, clip, settings, clean=settings.clean)
    with closing(crop_frames(span, crop, settings.fps, settings.longest_side)) as frames:
        return _write(target, frames, audio, settings)


def _write_voice(target: Path, path: Path, clip: Mapping[str, Any], settings: CutSettings) -> float:
    """Writes the audio that a silent person hears, under black frames; returns the duration in seconds."""
    span = _span(path, clip)
    audio = _audio(span, clip, settings, clean=False)
    count = max(1, round(((span.end or 0) - span.start) * settings.fps))
    return _write(target, iter([np.zeros((3, *UNSEEN), np.uint8)] * count), audio, settings)


def _audio(span: Clip, clip: Mapping[str, Any], settings: CutSettings, clean: bool) -> np.ndarray:
    rate = settings.sample_rate
    wav = span.path.with_suffix(".wav")  # the cleaned audio of seamless_interaction
    has_wav = clip["source"] == "seamless_interaction" and wav.is_file()
    length = round(((span.end or 0) - span.start) * settings.fps) * rate // settings.fps
    audio = read_audio(span, length, rate, wav if has_wav else None)
    if not clean or clip["speech"] is None:
        return audio
    return silence(audio, other_speech(clip["speech"], clip["voice"]), rate)


def _write(target: Path, frames: Iterator[np.ndarray], audio: np.ndarray, settings: CutSettings) -> float:
    """Writes a clip second by second, so that memory does not grow with it; returns the duration in seconds."""
    samples_per_frame = settings.sample_rate / settings.fps
    with ClipWriter(target, settings.fps, settings.sample_rate) as writer:
        for second in _seconds(frames, settings.fps):
            begin = round(writer.frames * samples_per_frame)
            end = round((writer.frames + len(second)) * samples_per_frame)
            writer.write(torch.from_numpy(second), torch.from_numpy(audio[begin:end].copy()))
    return writer.frames / settings.fps


def _seconds(frames: Iterator[np.ndarray], fps: int) -> Iterator[np.ndarray]:
    while second := list(islice(frames, fps)):
        yield np.stack(second)
