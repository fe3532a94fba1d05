"""Media files as containers: what their headers say, and their frames with the instants they belong to.

Everything that is opened here is a local file, and whatever goes wrong in it is told in one sentence.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

SEEK_MARGIN = 1.0  # seconds decoded and thrown away before a span, so that decoders are warmed up
PLAYLISTS = {"hls", "concat", "dash", "imf"}  # files that name other files
MISSING = {
    "video": "has no picture track; give a video of the person",
    "audio": "has no sound track; add one, or use a configuration without sound",
}


class MediaError(ValueError):
    """A file that cannot be used, and what to do about it, in one sentence."""


def is_wide(path: Path) -> bool:
    """Whether a video, upright, is wider than high; raises `MediaError`."""
    with closing(frames_of(path, "video", None)) as frames:
        for _, frame, stream in frames:
            wide = frame.width * pixel_aspect(stream) > frame.height
            return wide if round(frame.rotation / 90) % 2 == 0 else not wide
    raise MediaError(f"{path}: no picture could be decoded from it; re-encode or replace it")


def length_of(path: Path, within: tuple[int, int] | None = None) -> float:
    """How long a file's pictures last, in seconds, as its header tells; see `header_of`."""
    return header_of(path, within)[0]


def header_of(path: Path, within: tuple[int, int] | None = None) -> tuple[float, int, int]:
    """Seconds, height and width of a file's pictures, as its header tells; raises `MediaError`.

    Args:
        path: The file.
        within: The first byte and the one after the last of media that lie inside it, as in a tar.
    """
    with open_media(path, within) as container:
        stream = stream_of(container, "video", path)
        seconds = (container.duration or 0) / av.time_base
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        return seconds, stream.height, stream.width


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a file's pictures, upright and with square pixels; raises `MediaError`."""
    with closing(frames_of(Path(path), "video", None)) as frames:
        for _, frame, stream in frames:
            height, width = frame.height, round(frame.width * pixel_aspect(stream))
            return (width, height) if round(frame.rotation / 90) % 2 else (height, width)
    raise MediaError(f"{path}: no picture could be decoded from it; re-encode or replace it")


def origin_of(path: Path) -> float:
    """When picture 0 is shown, in seconds of the container's clock."""
    with closing(frames_of(path, "video", None)) as frames:
        for time, _, _ in frames:
            return time
    raise MediaError(f"{path}: no picture could be decoded from it; re-encode or replace it")


def frames_of(path: Path, kind: str, begin: float | None) -> Generator[tuple[float, Any, Any], None, None]:
    """(time, frame, stream) from at or before `begin`; from the file's start where its index misleads the seek."""
    for seek in (begin is not None and begin > SEEK_MARGIN, False):
        with open_media(path) as container:
            stream = stream_of(container, kind, path)
            if seek and begin is not None:
                container.seek(math.floor((begin - SEEK_MARGIN) * av.time_base))
            late = seek
            for time, frame in _timed(container, stream):
                if late and begin is not None and time > begin:
                    break
                late = False
                yield time, frame, stream
            if not late:
                return


def _timed(container: InputContainer, stream: Any) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times in seconds; one without a timestamp follows the one before."""
    expected = 0.0
    for frame in container.decode(stream):
        time = expected if frame.time is None else frame.time
        expected = time + duration_of(frame, stream)
        yield time, frame


def duration_of(frame: Any, stream: Any) -> float:
    if stream.type == "audio":
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / (stream.average_rate or stream.guessed_rate or 25))


def pixel_aspect(stream: Any) -> Fraction:
    return stream.sample_aspect_ratio or Fraction(1)


@contextmanager
def open_media(path: Path, within: tuple[int, int] | None = None) -> Iterator[InputContainer]:
    """Opens a local media file, and turns whatever goes wrong in reading it into one sentence."""
    if not path.is_file():
        raise MediaError(f"{path}: there is no such file; check the path")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty; copy or record it again")
    try:
        # Only local files: a crafted playlist must not fetch anything.
        place = str(path) if within is None else f"subfile,,start,{within[0]},end,{within[1]},,:{path}"
        with av.open(place, options={"protocol_whitelist": "file" if within is None else "file,subfile"}) as container:
            if PLAYLISTS & set(container.format.name.split(",")):
                raise MediaError(f"{path}: this is a playlist, not media; give the media file itself")
            yield container
    except av.error.FFmpegError as error:
        raise MediaError(
            f"{path}: cannot be decoded ({error.strerror}); check that it plays, re-encode or replace it"
        ) from error


def stream_of(container: InputContainer, kind: str, path: Path) -> Any:
    streams = container.streams.video if kind == "video" else container.streams.audio
    if not streams:
        raise MediaError(f"{path}: {MISSING[kind]}")
    # Frame threads of a container that a fork inherits hang the child, and at these sizes they gain nothing.
    streams[0].codec_context.thread_count = 1
    return streams[0]
