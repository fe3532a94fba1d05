"""Media files to tensors at the working rates, with picture and sound aligned by their timestamps.

Containers disagree about where time begins: MPEG-TS starts late, AAC is preceded by priming samples (in a fragmented
mp4, followed by a gap in time), recorders drop pictures. So nothing here counts frames: picture 0's timestamp is the
origin, and every later picture and sample goes where its own timestamp says.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from vidchat.data.media.container import (
    duration_of,
    frames_of,
    header_of,
    is_wide,
    length_of,
    no_picture,
    open_media,
    origin_of,
    picture_size,
    pixel_aspect,
    stream_of,
)
from vidchat.data.media.errors import MediaError, explained
from vidchat.data.media.pictures import at_instants, crop, fill
from vidchat.data.media.sound import edges, heard, lay_out, mix_to_mono, resample, to_float
from vidchat.data.media.write import ClipWriter, write_clip
from vidchat.dialogue import Clip

__all__ = [
    "ClipWriter",
    "Media",
    "MediaError",
    "crop_pictures",
    "header_of",
    "is_wide",
    "length_of",
    "picture_size",
    "read_clip",
    "read_picture",
    "read_sound",
    "write_clip",
]

MOST_BYTES = 4 << 30  # of the frames that one read returns
MOST_SECONDS = 1800  # of one read: its sound takes memory, too


@dataclass
class Media:
    """Decoded pictures and the sound of the same span; picture 0 and sample 0 are the same instant.

    Attributes:
        pictures: (N, 3, H, W) uint8.
        waveform: (round(N / fps * sample_rate),) float32, mono, in [-1, 1]; all zero where there is no sound.
        fps: Pictures per second.
        sample_rate: Samples per second.
    """

    pictures: Tensor
    waveform: Tensor
    fps: int
    sample_rate: int


def read_clip(
    clip: Clip,
    *,
    fps: int,
    size: tuple[int, int],
    sample_rate: int,
    audio: bool = True,
    max_seconds: float | None = None,
    last: int | None = None,
) -> Media:
    """Decodes a clip at the working rates.

    Pictures are those shown at the instants 0, 1/fps, ... (`at_instants`), scaled to cover `size` and cropped at the
    centre, upright. Sound is mixed to mono, resampled, and cut or padded with silence to the pictures' duration. At
    most `MOST_BYTES` of frames, and `MOST_SECONDS`, are read.

    Args:
        clip: The file and the span of it; its times count from the file's first picture.
        fps: Working pictures per second.
        size: (height, width) of the working picture.
        sample_rate: Working samples per second.
        audio: `False` leaves the sound track alone, and returns silence.
        max_seconds: At most this much is decoded.
        last: Only so many of the last pictures, and their sound, are kept; memory does not grow with the others.

    Raises:
        MediaError: The file is missing, empty, damaged, has no pictures (in the span), has no sound where `audio` asks
            for it, or the span is longer than the limits.
    """
    if audio:
        with open_media(clip.path) as container:
            stream_of(container, "audio", clip.path)  # before the pictures' long work
    origin = origin_of(clip.path)
    pictures, first = _read_pictures(clip, origin, fps, size, max_seconds, last)
    length = round(len(pictures) * sample_rate / fps)
    if audio:
        # Picture 1 of those that are kept begins on the same sample as in the whole clip.
        left_out = round((first + 1) * sample_rate / fps) - round(sample_rate / fps)
        sound = _read_sound(clip, origin, left_out + length, sample_rate)[left_out:].copy()
    else:
        sound = np.zeros(length, np.float32)
    return Media(torch.from_numpy(pictures), torch.from_numpy(sound), fps, sample_rate)


def read_picture(path: Path, size: tuple[int, int]) -> Tensor:
    """A picture file, or the first picture of a video, covering `size` = (height, width): (3, H, W) uint8.

    Raises:
        MediaError: The file is missing, empty, damaged, or holds no picture.
    """
    with explained(path), closing(frames_of(Path(path), "video", None)) as frames:
        for _, frame, stream in frames:
            return torch.from_numpy(fill(_intact(frame, path), size, pixel_aspect(stream), VideoReformatter()))
    raise no_picture(path)


def _read_pictures(
    clip: Clip, origin: float, fps: int, size: tuple[int, int], max_seconds: float | None, last: int | None
) -> tuple[np.ndarray, int]:
    """(N, 3, H, W) uint8: for every instant i / fps of the span, the picture shown then; and the first one's i."""
    reformatter, before, count, pictures = VideoReformatter(), None, 0, deque[Any](maxlen=last)
    most = min(MOST_SECONDS * fps, MOST_BYTES // (3 * size[0] * size[1]))
    with explained(clip.path), closing(_shown(clip, origin, fps, max_seconds)) as frames:
        for frame, stream in frames:
            if frame is not before:
                picture = fill(frame, size, pixel_aspect(stream), reformatter)
            pictures.append(picture)
            before, count = frame, count + 1
            if len(pictures) > most or count > MOST_SECONDS * fps:
                raise MediaError(
                    f"{clip.path}: is longer than {most / fps:.0f} s, the most that is read at once at {fps} fps and "
                    f"{size[0]}x{size[1]}; give a span of it (start and end), or cut it"
                )
    if not pictures:
        raise _too_short(clip)
    first = count - len(pictures)
    return _stacked(pictures), first


def _stacked(pictures: deque[Any]) -> np.ndarray:
    """`np.stack`, which takes the pictures out of their queue as it copies them: memory does not double."""
    stack = np.empty((len(pictures), *pictures[0].shape), np.uint8)
    for place in range(len(stack)):
        stack[place] = pictures.popleft()
    return stack


def _shown(clip: Clip, origin: float, fps: int, max_seconds: float | None) -> Generator[tuple[Any, Any], None, None]:
    """(frame, stream) for every instant i / fps of the span."""
    longest = [s for s in (max_seconds, None if clip.end is None else clip.end - clip.start) if s is not None]
    limit = max(1, round(min(longest) * fps)) if longest else None
    begin = origin + clip.start
    with closing(frames_of(clip.path, "video", begin)) as frames:
        timed = ((time - begin, duration_of(frame, stream), (frame, stream)) for time, frame, stream in frames)
        for frame, stream in islice(at_instants(timed, fps), limit):
            yield _intact(frame, clip.path), stream


def _intact(frame: Any, path: Path) -> Any:
    """The frame, unless its decoder had to guess parts of it."""
    if frame.is_corrupt:
        raise MediaError(f"{path}: the frame at {frame.time or 0:.2f} s is damaged; re-encode or replace the file")
    return frame


def _too_short(clip: Clip) -> MediaError:
    return MediaError(f"{clip.path}: ends before {clip.start:g} s, where the clip should begin; correct its start")


def crop_pictures(
    clip: Clip, box: tuple[float, float, float, float], fps: int, longest_side: int | None
) -> Generator[np.ndarray, None, None]:
    """The pictures of a clip within a box, one by one: (3, H, W) uint8 of even height and width.

    Args:
        clip: The file and the span of it.
        box: Left, upper, right and lower edge as shares of the upright picture.
        fps: Pictures per second.
        longest_side: A larger crop is made smaller, to so many pixels.

    Raises:
        MediaError: As `read_clip`.
    """
    reformatter, before, any_at_all = VideoReformatter(), None, False
    with explained(clip.path), closing(_shown(clip, origin_of(clip.path), fps, None)) as frames:
        for frame, stream in frames:
            if frame is not before:
                picture = crop(frame, box, pixel_aspect(stream), longest_side, reformatter)
            yield picture
            before, any_at_all = frame, True
    if not any_at_all:
        raise _too_short(clip)


def read_sound(clip: Clip, length: int, sample_rate: int, beside: Path | None = None) -> np.ndarray:
    """(length,) float32 of a clip's sound from the instant of its picture 0 on; raises `MediaError`.

    Args:
        clip: The file and the span of it.
        length: Samples wanted; silence where there are no more.
        sample_rate: Samples per second.
        beside: A file that holds the sound instead, and begins when the pictures do.
    """
    if beside is not None:
        return _read_sound(replace(clip, path=beside), 0.0, length, sample_rate)
    return _read_sound(clip, origin_of(clip.path), length, sample_rate)


def _read_sound(clip: Clip, origin: float, length: int, sample_rate: int) -> np.ndarray:
    """(length,) float32 from the instant of picture 0 on."""
    if length > MOST_SECONDS * sample_rate:
        raise MediaError(f"{clip.path}: more than {MOST_SECONDS} s of sound are asked for at once; give a span of it")
    begin = origin + clip.start
    with explained(clip.path), closing(frames_of(clip.path, "audio", begin)) as frames:
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{clip.path}: its sound track is empty; add sound, or use a configuration without")
        rate = first[1].sample_rate
        before, before_out = edges(rate, sample_rate)
        mixed = ((time - begin + before / rate, samples) for time, samples in _mixed(chain([first], frames)))
        lines = lay_out(mixed, rate, 2 * before + math.ceil(length * rate / sample_rate))
        return resample(heard(lines), rate, sample_rate)[before_out : before_out + length].copy()


def _mixed(frames: Iterable[tuple[float, Any, Any]]) -> Iterator[tuple[float, np.ndarray]]:
    """Decoded sound frames of any sample format and layout as float: the mix, and (2, n) the first channel below it."""
    for time, frame, _ in frames:
        samples, names = frame.to_ndarray(), [channel.name for channel in frame.layout.channels]
        if not frame.format.is_planar:
            samples = samples.reshape(-1, len(names)).T
        floats = to_float(samples)
        mono = mix_to_mono(floats, names)
        yield time, mono[None] if len(names) == 1 else np.stack([mono, floats[0]])
