"""The generated clip of a pair, and by which rule it is scored when it is bad."""

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
"""Status of an answer that lacks more of the span than is tolerated."""
ABSENT = frozenset({"missing", "unreadable"})
"""Statuses of a pair that has no answer at all."""
RULE = f"{COUNTED} {BAD}"


@dataclass(frozen=True)
class View:
    """How every clip is decoded, once for all measures.

    Attributes:
        size: (height, width); frames are scaled to cover it, bicubic, and cropped at the centre.
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
class Found:
    """A clip as it is scored.

    Attributes:
        media: What is scored beside the truth: cut by the rule; shorter than the truth if the answer is.
        statuses: What was wrong, of `STATUSES`; `good` alone if nothing was.
        note: In a sentence, if something was.
        seconds: How long the clip was, at most as much as was decoded; 0 if there was none.
        coverage: The share of the span that counts which the clip has, 0 ... 1.
        alone: What distances between sets take instead, where that is another: filled up by the rule.
    """

    media: Media
    statuses: tuple[str, ...]
    note: str
    seconds: float
    coverage: float = 1.0
    alone: Media | None = None

    @property
    def whole(self) -> Media:
        """The clip as distances between sets take it."""
        return self.media if self.alone is None else self.alone

    def listening(self) -> Found:
        """The same where the true answer listens, so that silence is no fault."""
        if "silent" not in self.statuses:
            return self
        others = tuple(status for status in self.statuses if status != "silent")
        return replace(self, statuses=others or ("good",), note="" if not others else self.note)


def find(folder: Path, name: str) -> Path | None:
    """The clip of a pair in a system's folder: the pair's id and a suffix of video."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def unexpected_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The videos in a system's folder that `find` finds for no pair."""
    known = set(names)
    videos = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(path.name for path in videos if path.stem not in known or path.suffix not in SUFFIXES)


def read_truth(pair: Pair, view: View) -> Media:
    """The true answer, as much of it as counts.

    Raises:
        MediaError: It cannot be read; silence is no error.
    """
    media, _ = _read(pair.truth, view, pair.answer_seconds)
    return _to_length(media, len(media.frames))


def read_reference(pair: Pair, view: View) -> Media:
    """The responder's frame as a clip of one frame."""
    return frozen(read_image(pair.reference, view.size), 1, view)


def read_made(clip: Clip | None, truth: Media, view: View) -> Found:
    """A generated clip by the rule: as many frames and samples as the truth, or as it has if it ends early.

    Args:
        clip: The clip, or `None` if the system has none.
        truth: The true answer, as much of it as counts.
        view: How to decode.
    """
    span = len(truth.frames)
    if clip is None:
        return unscored("missing", "there is no clip of this id", span, view)
    try:
        media, note = _read(clip, view, span / view.fps)
    except MediaError as error:
        return unscored("unreadable", in_short(error, clip), span, view)
    has, statuses, notes = min(span, len(media.frames)), [], [note] if note else []
    if is_silent(media.waveform) and not is_silent(truth.waveform):
        statuses.append("silent")
        notes = notes or ["it is silent"]
    lacks = has < span - TOLERANCE * view.fps
    if lacks:
        statuses.append(SHORT)
        notes.append(f"{has / view.fps:.2f} s, where {span / view.fps:.2f} s count")
    return Found(
        _to_length(media, has if lacks else span),
        tuple(statuses) or ("good",),
        "; ".join(dict.fromkeys(notes)),
        has / view.fps,
        has / span,
        _to_length(media, span) if lacks else None,
    )


def read_span(clip: Clip, frames: int, view: View) -> Media:
    """A clip cut or filled by the rule to a number of frames, for distances between sets; raises `MediaError`."""
    return _to_length(_read(clip, view, frames / view.fps)[0], frames)


def unscored(status: str, note: str, frames: int, view: View) -> Found:
    """Nothing at all, black and silent, in the place of a clip that is not there or cannot be scored."""
    return Found(black(frames, view), (status,), note, 0.0, 0.0)


def is_silent(waveform: Tensor) -> bool:
    """Whether an audio is below -60 dB of full scale."""
    return float(waveform.square().mean().sqrt()) < SILENCE if len(waveform) else True


def black(frames: int, view: View) -> Media:
    """A black clip with silence."""
    return frozen(torch.zeros(3, *view.size, dtype=torch.uint8), frames, view)


def frozen(frame: Tensor, frames: int, view: View) -> Media:
    """A clip in which a frame (3, H, W) stands still, with silence."""
    samples = round(frames * view.sample_rate / view.fps)
    return Media(frame[None].repeat(frames, 1, 1, 1), torch.zeros(samples), view.fps, view.sample_rate)


def _read(clip: Clip, view: View, longest: float | None) -> tuple[Media, str]:
    """The clip, with silence and a note where it has no audio that can be read."""
    try:
        media = read_clip(clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, max_seconds=longest)
        return media, ""
    except MediaError as error:
        note = in_short(error, clip)
    media = read_clip(
        clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, audio=False, max_seconds=longest
    )
    return media, note


def in_short(error: Exception, clip: Clip) -> str:
    """What went wrong, for reports that are sent to others: not where the file lay, nor advice for who trains on it."""
    return str(error).replace(str(clip.path), clip.path.name).partition("; ")[0]


def _to_length(media: Media, frames: int) -> Media:
    """The clip cut to a number of frames, or filled up: what is nearly there by its last frame, else by black."""
    lacking = frames - len(media.frames)
    samples = round(frames * media.sample_rate / media.fps)
    audio = F.pad(media.waveform[:samples], (0, max(0, samples - len(media.waveform))))
    if lacking <= 0:
        return Media(media.frames[:frames], audio, media.fps, media.sample_rate)
    last = media.frames[-1:].repeat(lacking, 1, 1, 1)
    held = last if lacking <= TOLERANCE * media.fps else torch.zeros_like(last)
    return Media(torch.cat([media.frames, held]), audio, media.fps, media.sample_rate)
