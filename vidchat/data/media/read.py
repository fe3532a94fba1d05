"""Media files to tensors at the working rates, with frame and audio aligned by their timestamps.

Containers disagree about where time begins: MPEG-TS starts late, AAC is preceded by priming samples (in a fragmented
mp4, followed by a gap in time), recorders drop frames. So nothing here counts frames: frame 0's timestamp is the
origin, and every later frame and sample goes where its own timestamp says.
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
    frame_size,
    frames_of,
    header_of,
    is_wide,
    length_of,
    no_video,
    open_media,
    origin_of,
    pixel_aspect,
    stream_of,
)
from vidchat.data.media.frames import at_instants, crop, fill
from vidchat.data.media.media_error import MediaError, explained
from vidchat.data.media.waveform import edges, heard, lay_out, mix_to_mono, resample, to_float
from vidchat.data.media.write import ClipWriter, write_clip
from vidchat.dialogue import Clip

__all__ = [
    "ClipWriter",
    "Media",
    "MediaError",
    "crop_frames",
    "frame_size",
    "header_of",
    "is_wide",
    "length_of",
    "read_audio",
    "read_clip",
    "read_image",
    "write_clip",
]

MOST_BYTES = 4 << 30  # of the frames that one read returns
MOST_SECONDS = 1800  # of one read: its audio takes memory, too


@dataclass
class Media:
    """Decoded frames and the audio of the same span; frame 0 and sample 0 are the same instant.

    Attributes:
        frames: (N, 3, H, W) uint8.
        waveform: (round(N / fps * sample_rate),) float32, mono, in [-1, 1]; all zero where there is no audio.
        fps: Frames per second.
        sample_rate: Samples per second.
    """

    frames: Tensor
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

    Frames are those shown at the instants 0, 1/fps, ... (`at_instants`), scaled to cover `size` and cropped at the
    centre, upright. Audio is mixed to mono, resampled, and cut or padded with silence to the frames' duration. At
    most `MOST_BYTES` of frames, and `MOST_SECONDS`, are read.

    Args:
        clip: The file and the span of it; its times count from the file's first frame.
        fps: Working frames per second.
        size: (height, width) of the working frame.
        sample_rate: Working samples per second.
        audio: `False` leaves the audio track alone, and returns silence.
        max_seconds: At most this much is decoded.
        last: Only so many of the last frames, and their audio, are kept; memory does not grow with the others.

    Raises:
        MediaError: The file is missing, empty, damaged, has no frames (in the span), has no audio where `audio` asks
            for it, or the span is longer than the limits.
    """
    if audio:
        with open_media(clip.path) as container:
            stream_of(container, "audio", clip.path)  # before the frames' long work
    origin = origin_of(clip.path)
    frames, first = _read_frames(clip, origin, fps, size, max_seconds, last)
    length = round(len(frames) * sample_rate / fps)
    if audio:
        # Frame 1 of those that are kept begins on the same sample as in the whole clip.
        left_out = round((first + 1) * sample_rate / fps) - round(sample_rate / fps)
        waveform = _read_audio(clip, origin, left_out + length, sample_rate)[left_out:].copy()
    else:
        waveform = np.zeros(length, np.float32)
    return Media(torch.from_numpy(frames), torch.from_numpy(waveform), fps, sample_rate)


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """A image file, or the first frame of a video, covering `size` = (height, width): (3, H, W) uint8.

    Raises:
        MediaError: The file is missing, empty, damaged, or holds no frame.
    """
    with explained(path), closing(frames_of(Path(path), "video", None)) as decoded:
        for _, frame, stream in decoded:
            return torch.from_numpy(fill(_intact(frame, path), size, pixel_aspect(stream), VideoReformatter()))
    raise no_video(path)


def _read_frames(
    clip: Clip, origin: float, fps: int, size: tuple[int, int], max_seconds: float | None, last: int | None
) -> tuple[np.ndarray, int]:
    """(N, 3, H, W) uint8: for every instant i / fps of the span, the frame shown then; and the first one's i."""
    reformatter, before, count, frames = VideoReformatter(), None, 0, deque[Any](maxlen=last)
    most = min(MOST_SECONDS * fps, MOST_BYTES // (3 * size[0] * size[1]))
    with explained(clip.path), closing(_shown(clip, origin, fps, max_seconds)) as decoded:
        for frame, stream in decoded:
            if frame is not before:
                pixels = fill(frame, size, pixel_aspect(stream), reformatter)
            frames.append(pixels)
            before, count = frame, count + 1
            if len(frames) > most or count > MOST_SECONDS * fps:
                raise MediaError(
                    f"{clip.path}: is longer than {most / fps:.0f} s, the most that is read at once at {fps} fps and "
                    f"{size[0]}x{size[1]}; give a span of it (start and end), or cut it"
                )
    if not frames:
        raise _too_short(clip)
    first = count - len(frames)
    return _stacked(frames), first


def _stacked(frames: deque[Any]) -> np.ndarray:
    """`np.stack`, which takes the frames out of their queue as it copies them: memory does not double."""
    stack = np.empty((len(frames), *frames[0].shape), np.uint8)
    for place in range(len(stack)):
        stack[place] = frames.popleft()
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


def crop_frames(
    clip: Clip, box: tuple[float, float, float, float], fps: int, longest_side: int | None
) -> Generator[np.ndarray, None, None]:
    """The frames of a clip within a box, one by one: (3, H, W) uint8 of even height and width.

    Args:
        clip: The file and the span of it.
        box: Left, upper, right and lower edge as shares of the upright frame.
        fps: Frames per second.
        longest_side: A larger crop is made smaller, to so many pixels.

    Raises:
        MediaError: As `read_clip`.
    """
    reformatter, before, any_at_all = VideoReformatter(), None, False
    with explained(clip.path), closing(_shown(clip, origin_of(clip.path), fps, None)) as decoded:
        for frame, stream in decoded:
            if frame is not before:
                pixels = crop(frame, box, pixel_aspect(stream), longest_side, reformatter)
            yield pixels
            before, any_at_all = frame, True
    if not any_at_all:
        raise _too_short(clip)


def read_audio(clip: Clip, length: int, sample_rate: int, beside: Path | None = None) -> np.ndarray:
    """(length,) float32 of a clip's audio from the instant of its frame 0 on; raises `MediaError`.

    Args:
        clip: The file and the span of it.
        length: Samples wanted; silence where there are no more.
        sample_rate: Samples per second.
        beside: A file that holds the audio instead, and begins when the frames do.
    """
    if beside is not None:
        return _read_audio(replace(clip, path=beside), 0.0, length, sample_rate)
    return _read_audio(clip, origin_of(clip.path), length, sample_rate)


def _read_audio(clip: Clip, origin: float, length: int, sample_rate: int) -> np.ndarray:
    """(length,) float32 from the instant of frame 0 on."""
    if length > MOST_SECONDS * sample_rate:
        raise MediaError(f"{clip.path}: more than {MOST_SECONDS} s of audio are asked for at once; give a span of it")
    begin = origin + clip.start
    with explained(clip.path), closing(frames_of(clip.path, "audio", begin)) as frames:
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{clip.path}: its audio track is empty; add audio, or use a configuration without")
        rate = first[1].sample_rate
        before, before_out = edges(rate, sample_rate)
        mixed = ((time - begin + before / rate, samples) for time, samples in _mixed(chain([first], frames)))
        lines = lay_out(mixed, rate, 2 * before + math.ceil(length * rate / sample_rate))
        return resample(heard(lines), rate, sample_rate)[before_out : before_out + length].copy()


def _mixed(frames: Iterable[tuple[float, Any, Any]]) -> Iterator[tuple[float, np.ndarray]]:
    """Decoded audio frames of any sample format and layout as float: the mix, and (2, n) the first channel below it."""
    for time, frame, _ in frames:
        samples, names = frame.to_ndarray(), [channel.name for channel in frame.layout.channels]
        if not frame.format.is_planar:
            samples = samples.reshape(-1, len(names)).T
        floats = to_float(samples)
        mono = mix_to_mono(floats, names)
        yield time, mono[None] if len(names) == 1 else np.stack([mono, floats[0]])
