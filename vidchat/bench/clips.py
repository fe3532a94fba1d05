"""Decodes the clips of a pair, and applies the rules for missing, unreadable and short answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.pairs import Pair
from vidchat.bench.rules import BAD, COUNTED, TOLERANCE
from vidchat.data.media.read import Media, MediaError, read_clip, read_image
from vidchat.dialogue import Clip
from vidchat.runtime.sizes import format_size

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg")
SILENCE = 1e-3  # root mean square, -60 dB of full scale
STATUSES = ("good", "missing", "unreadable", "silent", "short", "not scored")
SHORT = "short"
"""Status of an answer that is shorter than the tolerance allows."""
ABSENT = frozenset({"missing", "unreadable"})
"""Statuses of a pair without an answer."""
RULE = f"{COUNTED} {BAD}"


@dataclass(frozen=True)
class View:
    """Format in which every clip is decoded, once for all metrics.

    Attributes:
        size: (height, width); frames are scaled to cover it (bicubic) and cropped at the centre.
        fps: Frames per second.
        sample_rate: Samples per second.
    """

    size: tuple[int, int]
    fps: int = 25
    sample_rate: int = 16000

    def __str__(self) -> str:
        size = f"{format_size(self.size)} (HEIGHTxWIDTH, swscale bicubic, cover, centre crop)"
        return f"size={size}; fps={self.fps}; audio={self.sample_rate} Hz"


@dataclass(frozen=True)
class ScoredClip:
    """A decoded clip and its faults.

    Attributes:
        media: Clip that is compared with the truth: cut to its length, or shorter if the answer ends early.
        statuses: Faults of the clip, from `STATUSES`; `good` alone if there are none.
        note: Description of the faults in a sentence; empty if there are none.
        seconds: Length of the decoded clip; 0 if there is none.
        coverage: Share of the scored span that the clip covers, 0 ... 1.
        set_media: Clip for distances between sets where it differs from `media`: filled up, or of another length.
    """

    media: Media
    statuses: tuple[str, ...]
    note: str
    seconds: float
    coverage: float = 1.0
    set_media: Media | None = None

    @property
    def media_for_sets(self) -> Media:
        """Returns the clip for distances between sets."""
        return self.media if self.set_media is None else self.set_media

    def listening(self) -> ScoredClip:
        """Returns the clip without the fault `silent`, for pairs whose true answer only listens."""
        if "silent" not in self.statuses:
            return self
        others = tuple(status for status in self.statuses if status != "silent")
        return replace(self, statuses=others or ("good",), note="" if not others else self.note)


def find_clip(folder: Path, name: str) -> Path | None:
    """Returns the clip in a folder that is named by a pair's id, or `None`."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def unexpected_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Returns the names of the videos in a folder that belong to no pair."""
    known = set(names)
    videos = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(path.name for path in videos if path.stem not in known or path.suffix not in SUFFIXES)


def read_truth(pair: Pair, view: View) -> Media:
    """Reads the scored span of the true answer.

    Raises:
        MediaError: The answer cannot be read; a missing audio stream is no error.
    """
    media, _ = _read(pair.truth, view, pair.answer_seconds)
    return _to_length(media, len(media.frames))


def read_reference(pair: Pair, view: View) -> Media:
    """Reads the reference as a clip of one frame."""
    return still_clip(read_image(pair.reference, view.size), 1, view)


def read_answer(clip: Clip | None, truth: Media, view: View) -> ScoredClip:
    """Reads a generated clip, cut to the length of the truth, or as long as it is if it ends early.

    Args:
        clip: Clip of the system, or `None` if it has none.
        truth: Scored span of the true answer.
        view: Format of the decoded clip.
    """
    span = len(truth.frames)
    if clip is None:
        return unscored("missing", "there is no clip of this id", span, view)
    try:
        media, note = _read(clip, view, span / view.fps)
    except MediaError as error:
        return unscored("unreadable", short_message(error, clip), span, view)
    length, statuses, notes = min(span, len(media.frames)), [], [note] if note else []
    if is_silent(media.waveform) and not is_silent(truth.waveform):
        statuses.append("silent")
        notes = notes or ["it is silent"]
    short = length < span - TOLERANCE * view.fps
    if short:
        statuses.append(SHORT)
        notes.append(f"{length / view.fps:.2f} s, where {span / view.fps:.2f} s count")
    return ScoredClip(
        _to_length(media, length if short else span),
        tuple(statuses) or ("good",),
        "; ".join(dict.fromkeys(notes)),
        length / view.fps,
        length / span,
        _to_length(media, span) if short else None,
    )


def read_span(clip: Clip, frames: int, view: View) -> Media:
    """Reads a clip, cut or filled up to a number of frames, for distances between sets; raises `MediaError`."""
    return _to_length(_read(clip, view, frames / view.fps)[0], frames)


def unscored(status: str, note: str, frames: int, view: View) -> ScoredClip:
    """Returns a black and silent clip in place of one that is missing or cannot be scored."""
    return ScoredClip(black(frames, view), (status,), note, 0.0, 0.0)


def is_silent(waveform: Tensor) -> bool:
    """Returns whether a waveform (n,) is below -60 dB of full scale."""
    return float(waveform.square().mean().sqrt()) < SILENCE if len(waveform) else True


def black(frames: int, view: View) -> Media:
    """Returns a black clip with silence."""
    return still_clip(torch.zeros(3, *view.size, dtype=torch.uint8), frames, view)


def still_clip(frame: Tensor, frames: int, view: View) -> Media:
    """Returns a clip that repeats one frame (3, H, W), with silence."""
    samples = round(frames * view.sample_rate / view.fps)
    return Media(frame[None].repeat(frames, 1, 1, 1), torch.zeros(samples), view.fps, view.sample_rate)


def _read(clip: Clip, view: View, max_seconds: float | None) -> tuple[Media, str]:
    """Reads a clip; if its audio cannot be read, returns silence and a note."""
    try:
        media = read_clip(clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, max_seconds=max_seconds)
        return media, ""
    except MediaError as error:
        note = short_message(error, clip)
    media = read_clip(
        clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, audio=False, max_seconds=max_seconds
    )
    return media, note


def short_message(error: Exception, clip: Clip) -> str:
    """Returns an error's message for a report: without the folder of the clip, and without the advice that follows."""
    return str(error).replace(str(clip.path), clip.path.name).partition("; ")[0]


def _to_length(media: Media, frames: int) -> Media:
    """Cuts a clip to a number of frames, or fills it up: by its last frame within the tolerance, else by black."""
    missing = frames - len(media.frames)
    samples = round(frames * media.sample_rate / media.fps)
    audio = F.pad(media.waveform[:samples], (0, max(0, samples - len(media.waveform))))
    if missing <= 0:
        return Media(media.frames[:frames], audio, media.fps, media.sample_rate)
    last = media.frames[-1:].repeat(missing, 1, 1, 1)
    filling = last if missing <= TOLERANCE * media.fps else torch.zeros_like(last)
    return Media(torch.cat([media.frames, filling]), audio, media.fps, media.sample_rate)
