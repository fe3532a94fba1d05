"""The generated clip of a pair, and by which rule it is scored when it is bad."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.bench.pairs import Pair
from vidchat.data.media.read import Media, MediaError, length_of, read_clip, read_picture
from vidchat.dialogue import Clip

SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".mpg")
SHORT, LONG = 0.8, 1.25  # of the truth's length
SILENCE = 1e-3  # root mean square, -60 dB of full scale
STATUSES = ("good", "missing", "unreadable", "silent", "short", "long")
ABSENT = frozenset({"missing", "unreadable"})
"""Statuses of a pair that has no answer at all."""
RULE = (
    "No pair is left out. The true answer is the ceiling: pair by pair, what is beyond its value counts as its value. "
    "A missing or unreadable clip gets the worst value of every measure, and in distances between sets features farther "
    "from the truth than any clip's; so does, in a measure of sound, an answer without sound (none, or quieter than "
    "-60 dB) to which the truth has sound. A clip shorter than 80 % of the truth is filled up to the truth's length "
    "with black and silence; one longer than 125 % is cut there. Within these bounds length is free, and comparisons "
    "picture by picture take the shorter of the two. Distances between sets (FID, FVD, emotion FID) take each clip as "
    "it is, neither filled nor cut, up to the length of the longest true answer. Where the responder only listens, "
    "silence is no fault, measures of speech are not taken, and those of listening are."
)


@dataclass(frozen=True)
class View:
    """How every clip is decoded, once for all measures.

    Attributes:
        size: (height, width); pictures are scaled to cover it, bicubic, and cropped at the centre.
        fps: Pictures per second.
        sample_rate: Samples per second.
        longest: Seconds of the longest true answer; distances between sets look at no more of a clip.
    """

    size: tuple[int, int]
    fps: int = 25
    sample_rate: int = 16000
    longest: float = 0.0

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"size={width}x{height} (swscale bicubic, cover, centre crop); fps={self.fps}; audio={self.sample_rate} Hz"
        )


@dataclass(frozen=True)
class Found:
    """A clip as it is scored.

    Attributes:
        media: What is scored beside the truth: filled or cut by the rule.
        statuses: What was wrong, of `STATUSES`; `good` alone if nothing was.
        note: In a sentence, if something was.
        seconds: How long the clip was, at most as much as was decoded; 0 if there was none.
        whole: The clip as it is, for distances between sets; perhaps longer than they look at (`View.longest`).
    """

    media: Media
    statuses: tuple[str, ...]
    note: str
    seconds: float
    whole: Media

    def listening(self) -> Found:
        """The same where the true answer listens, so that silence is no fault."""
        if "silent" not in self.statuses:
            return self
        others = tuple(status for status in self.statuses if status != "silent")
        return replace(self, statuses=others or ("good",), note="" if not others else self.note)


def find(folder: Path, name: str) -> Path | None:
    """The clip of a pair in a system's folder: the pair's id and a suffix of video."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def strays(folder: Path, names: Iterable[str]) -> list[str]:
    """The videos in a system's folder that `find` finds for no pair."""
    known = set(names)
    videos = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return sorted(path.name for path in videos if path.stem not in known or path.suffix not in SUFFIXES)


def read_truth(pair: Pair, view: View) -> Media:
    """The true answer.

    Raises:
        MediaError: It cannot be read; silence is no error.
    """
    return _read(pair.truth, view, None)[0]


def read_reference(pair: Pair, view: View) -> Media:
    """The responder's picture as a clip of one picture."""
    return frozen(read_picture(pair.reference, view.size), 1, view)


def read_made(clip: Clip | None, truth: Media, view: View) -> Found:
    """A generated clip by the rule.

    Args:
        clip: The clip, or `None` if the system has none.
        truth: The true answer.
        view: How to decode.
    """
    pictures = len(truth.pictures)
    if clip is None:
        return _nothing(pictures, view, "missing", "there is no clip of this id")
    try:
        media, note = _read(clip, view, max((LONG * pictures + 2) / view.fps, view.longest))
    except MediaError as error:
        return _nothing(pictures, view, "unreadable", _in_short(error, clip))
    whole, seconds, statuses, notes = media, len(media.pictures) / view.fps, [], [note] if note else []
    if is_silent(media.waveform) and not is_silent(truth.waveform):
        statuses.append("silent")
        notes = notes or ["it is silent"]
    if len(media.pictures) < SHORT * pictures:
        statuses.append("short")
        notes.append(f"{seconds:.2f} s, where the truth has {pictures / view.fps:.2f} s")
        media = _filled(media, pictures)
    elif len(media.pictures) > LONG * pictures:
        statuses.append("long")
        notes.append(f"longer than {LONG:g} x the truth's {pictures / view.fps:.2f} s")
        media = _cut(media, int(LONG * pictures))
    return Found(media, tuple(statuses) or ("good",), "; ".join(dict.fromkeys(notes)), seconds, whole)


def longest_truth(pairs: Iterable[Pair]) -> float:
    """Seconds of the longest true answer, as the files' headers tell; 0 if none tells."""
    longest = 0.0
    for pair in pairs:
        try:
            end = length_of(pair.truth.path) if pair.truth.end is None else pair.truth.end
        except MediaError:
            continue  # the pair's scoring says so
        longest = max(longest, end - pair.truth.start)
    return longest


def _nothing(pictures: int, view: View, status: str, note: str) -> Found:
    """What stands for no clip at all."""
    media = black(pictures, view)
    return Found(media, (status,), note, 0.0, media)


def up_to(media: Media, seconds: float) -> Media:
    """The first so many seconds of a clip; all of it for 0."""
    pictures = round(seconds * media.fps)
    return _cut(media, pictures) if 0 < pictures < len(media.pictures) else media


def is_silent(waveform: Tensor) -> bool:
    """Whether a sound is below -60 dB of full scale."""
    return float(waveform.square().mean().sqrt()) < SILENCE if len(waveform) else True


def black(pictures: int, view: View) -> Media:
    """A black clip with silence."""
    return frozen(torch.zeros(3, *view.size, dtype=torch.uint8), pictures, view)


def frozen(picture: Tensor, pictures: int, view: View) -> Media:
    """A clip in which a picture (3, H, W) stands still, with silence."""
    samples = round(pictures * view.sample_rate / view.fps)
    return Media(picture[None].repeat(pictures, 1, 1, 1), torch.zeros(samples), view.fps, view.sample_rate)


def _read(clip: Clip, view: View, longest: float | None) -> tuple[Media, str]:
    """The clip, with silence and a note where it has no sound that can be read."""
    try:
        media = read_clip(clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, max_seconds=longest)
        return media, ""
    except MediaError as error:
        note = _in_short(error, clip)
    media = read_clip(
        clip, fps=view.fps, size=view.size, sample_rate=view.sample_rate, audio=False, max_seconds=longest
    )
    return media, note


def _in_short(error: MediaError, clip: Clip) -> str:
    """What went wrong, for reports that are sent to others: not where the file lay, nor advice for who trains on it."""
    return str(error).replace(str(clip.path), clip.path.name).partition("; ")[0]


def _filled(media: Media, pictures: int) -> Media:
    lacking = pictures - len(media.pictures)
    samples = round(pictures * media.sample_rate / media.fps) - len(media.waveform)
    longer = F.pad(media.pictures, (0, 0, 0, 0, 0, 0, 0, lacking))
    return Media(longer, F.pad(media.waveform, (0, samples)), media.fps, media.sample_rate)


def _cut(media: Media, pictures: int) -> Media:
    samples = round(pictures * media.sample_rate / media.fps)
    return Media(media.pictures[:pictures], media.waveform[:samples], media.fps, media.sample_rate)
