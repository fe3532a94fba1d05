"""Media files to tensors at the working rates, with video and audio aligned by their time stamps.

Containers disagree about where time begins: MPEG-TS starts late, AAC is preceded by priming samples (in a fragmented
mp4, followed by a gap in time), recorders drop frames. Frames are therefore not counted: the time stamp of frame 0 is
the origin, and every later frame and sample is placed by its own time stamp.
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
    pixel_aspect,
    start_time,
    stream_of,
)
from vidchat.data.media.frames import cover, crop, resample_frames
from vidchat.data.media.media_error import MediaError, explained
from vidchat.data.media.waveform import edges, mix_to_mono, place_frames, resample, to_float, uncancelled
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
    "stream_frames",
    "write_clip",
]

MOST_BYTES = 4 << 30  # largest size of the frames of one read
MOST_SECONDS = 1800  # longest read, as audio takes memory, too


@dataclass
class Media:
    """Decoded frames and audio of one span; frame 0 and sample 0 are of the same instant.

    Attributes:
        frames: Video, (N, 3, H, W) uint8.
        waveform: Mono audio in [-1, 1], (round(N / fps * sample_rate),) float32; zeros without audio.
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

    Frames are those shown at the instants 0, 1/fps, ... (`resample_frames`), upright, scaled to cover `size` and
    cropped at the centre. Audio is mixed to mono, resampled, and cut or padded with silence to the video's duration. At
    most `MOST_BYTES` of frames and `MOST_SECONDS` are read.

    Args:
        clip: File and span; its times count from the file's first frame.
        fps: Working frames per second.
        size: (height, width) of the working frames.
        sample_rate: Working samples per second.
        audio: Whether to read the audio track; else the waveform is silence.
        max_seconds: Longest duration to decode.
        last: Number of last frames to keep, with their audio; memory does not grow with the others.

    Raises:
        MediaError: The file is missing, empty or damaged, has no frames in the span, has no audio although `audio` is
            set, or the span is longer than the limits.
    """
    if audio:
        with open_media(clip.path) as container:
            stream_of(container, "audio", clip.path)  # fails before the slow decoding of frames
    origin = start_time(clip.path)
    frames, first = _read_frames(clip, fps, size, max_seconds, last)
    length = round(len(frames) * sample_rate / fps)
    if audio:
        # Frame 1 of the kept frames begins on the same sample as in the full clip.
        skipped = round((first + 1) * sample_rate / fps) - round(sample_rate / fps)
        waveform = _read_audio(clip, origin, skipped + length, sample_rate)[skipped:].copy()
    else:
        waveform = np.zeros(length, np.float32)
    return Media(torch.from_numpy(frames), torch.from_numpy(waveform), fps, sample_rate)


def read_image(path: Path, size: tuple[int, int]) -> Tensor:
    """Reads an image file, or the first frame of a video, scaled to cover `size` = (height, width): (3, H, W) uint8.

    Raises:
        MediaError: The file is missing, empty, damaged, or holds no frame.
    """
    with explained(path), closing(frames_of(Path(path), "video", None)) as decoded:
        for _, frame, stream in decoded:
            return torch.from_numpy(cover(_intact(frame, path), size, pixel_aspect(stream), VideoReformatter()))
    raise no_video(path)


def _read_frames(
    clip: Clip, fps: int, size: tuple[int, int], max_seconds: float | None, last: int | None
) -> tuple[np.ndarray, int]:
    """Returns the frames shown at the instants i / fps of the span, (N, 3, H, W) uint8, and i of the first of them."""
    frames, count = deque[Any](maxlen=last), 0
    most = min(MOST_SECONDS * fps, MOST_BYTES // (3 * size[0] * size[1]))
    with closing(stream_frames(clip, fps, size, max_seconds)) as decoded:
        for pixels in decoded:
            frames.append(pixels)
            count += 1
            if len(frames) > most or count > MOST_SECONDS * fps:
                raise MediaError(
                    f"{clip.path}: is longer than {most / fps:.0f} s, the limit of one read at {fps} fps and "
                    f"{size[0]}x{size[1]}; give a span (start and end), or cut the file"
                )
    first = count - len(frames)
    return _stacked(frames), first


def stream_frames(
    clip: Clip, fps: int, size: tuple[int, int], max_seconds: float | None = None
) -> Generator[np.ndarray, None, None]:
    """Yields the frames of a clip one by one, as `read_clip` returns them: (3, H, W) uint8.

    A frame that is shown twice is yielded twice. The arguments and errors are those of `read_clip`.
    """
    reformatter, previous = VideoReformatter(), None
    with explained(clip.path), closing(_shown(clip, start_time(clip.path), fps, max_seconds)) as decoded:
        for frame, stream in decoded:
            if frame is not previous:
                pixels = cover(frame, size, pixel_aspect(stream), reformatter)
            yield pixels
            previous = frame
    if previous is None:
        raise _too_short(clip)


def _stacked(frames: deque[Any]) -> np.ndarray:
    """Stacks frames, removing each from the queue as it is copied, so that memory does not double."""
    stack = np.empty((len(frames), *frames[0].shape), np.uint8)
    for k in range(len(stack)):
        stack[k] = frames.popleft()
    return stack


def _shown(clip: Clip, origin: float, fps: int, max_seconds: float | None) -> Generator[tuple[Any, Any], None, None]:
    """Yields (frame, stream) for each instant i / fps of the span."""
    limits = [s for s in (max_seconds, None if clip.end is None else clip.end - clip.start) if s is not None]
    limit = max(1, round(min(limits) * fps)) if limits else None
    begin = origin + clip.start
    with closing(frames_of(clip.path, "video", begin)) as frames:
        timed = ((time - begin, duration_of(frame, stream), (frame, stream)) for time, frame, stream in frames)
        for frame, stream in islice(resample_frames(timed, fps), limit):
            yield _intact(frame, clip.path), stream


def _intact(frame: Any, path: Path) -> Any:
    """Returns the frame; raises `MediaError` if its decoder had to conceal damage."""
    if frame.is_corrupt:
        raise MediaError(f"{path}: the frame at {frame.time or 0:.2f} s is damaged; re-encode or replace the file")
    return frame


def _too_short(clip: Clip) -> MediaError:
    return MediaError(f"{clip.path}: ends before {clip.start:g} s, where the clip should begin; correct its start")


def crop_frames(
    clip: Clip, box: tuple[float, float, float, float], fps: int, longest_side: int | None
) -> Generator[np.ndarray, None, None]:
    """Yields the frames of a clip, cropped to a box: (3, H, W) uint8 of even height and width.

    Args:
        clip: File and span.
        box: Left, upper, right and lower edge as shares of the upright frame.
        fps: Frames per second.
        longest_side: Longest side of the result in pixels; larger crops are scaled down.

    Raises:
        MediaError: See `read_clip`.
    """
    reformatter, previous = VideoReformatter(), None
    with explained(clip.path), closing(_shown(clip, start_time(clip.path), fps, None)) as decoded:
        for frame, stream in decoded:
            if frame is not previous:
                pixels = crop(frame, box, pixel_aspect(stream), longest_side, reformatter)
            yield pixels
            previous = frame
    if previous is None:
        raise _too_short(clip)


def read_audio(clip: Clip, length: int, sample_rate: int, wav: Path | None = None) -> np.ndarray:
    """Reads a clip's audio from the instant of its frame 0 on: (length,) float32; raises `MediaError`.

    Args:
        clip: File and span.
        length: Number of samples; silence follows the end of the audio.
        sample_rate: Samples per second.
        wav: File that holds the audio instead, starting with the video's first frame.
    """
    if wav is not None:
        return _read_audio(replace(clip, path=wav), 0.0, length, sample_rate)
    return _read_audio(clip, start_time(clip.path), length, sample_rate)


def _read_audio(clip: Clip, origin: float, length: int, sample_rate: int) -> np.ndarray:
    """Reads audio from the instant of frame 0 on: (length,) float32."""
    if length > MOST_SECONDS * sample_rate:
        raise MediaError(f"{clip.path}: more than {MOST_SECONDS} s of audio were requested; give a shorter span")
    begin = origin + clip.start
    with explained(clip.path), closing(frames_of(clip.path, "audio", begin)) as frames:
        first = next(frames, None)
        if first is None:
            raise MediaError(f"{clip.path}: its audio track is empty; add audio, or use a configuration without audio")
        rate = first[1].sample_rate
        before, before_out = edges(rate, sample_rate)
        mixed = ((time - begin + before / rate, samples) for time, samples in _mixed(chain([first], frames)))
        lines = place_frames(mixed, rate, 2 * before + math.ceil(length * rate / sample_rate))
        return resample(uncancelled(lines), rate, sample_rate)[before_out : before_out + length].copy()


def _mixed(frames: Iterable[tuple[float, Any, Any]]) -> Iterator[tuple[float, np.ndarray]]:
    """Converts decoded audio frames to float: mono (1, n), or mix and first channel (2, n)."""
    for time, frame, _ in frames:
        samples, names = frame.to_ndarray(), [channel.name for channel in frame.layout.channels]
        if not frame.format.is_planar:
            samples = samples.reshape(-1, len(names)).T
        floats = to_float(samples)
        mono = mix_to_mono(floats, names)
        yield time, mono[None] if len(names) == 1 else np.stack([mono, floats[0]])
