"""Media files as containers: what their headers say, and their frames with the instants they belong to.

This is the one place where media files are opened. They are local files, whatever goes wrong in them is told in one
sentence that names the file, and what a file makes of its time stamps is bounded: a frame may stand for `STILL`
seconds, and a film may last `STILL` seconds more than it has frames (a file of 3 kB can claim twelve hours).
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition

from vidchat.data.media.colours import MOST_PIXELS
from vidchat.data.media.images import still_of
from vidchat.data.media.media_error import MediaError, explained
from vidchat.data.media.orientation import orientation

SEEK_MARGIN = 1.0  # seconds decoded and thrown away before a span, so that decoders are warmed up
STILL = 30.0  # seconds that one frame may stand
RATES = (1000, 768_000)  # samples per second that an audio track may have
SEE_THROUGH = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoders that know of transparency
PLAYLISTS = {"hls", "concat", "dash", "imf"}  # files that name other files
MISSING = {
    "video": "has no frame track; give a video of the person",
    "audio": "has no audio track; add one, or use a configuration without audio",
}


class StillStream(NamedTuple):
    """What stands for the video stream of an image file, which lasts as long as a frame."""

    type: str = "video"
    sample_aspect_ratio: Fraction | None = None
    average_rate: Fraction = Fraction(25)


def is_wide(path: Path) -> bool:
    """Whether a video, upright, is wider than high; raises `MediaError`."""
    height, width = frame_size(path)
    return width > height


def length_of(path: Path, within: tuple[int, int] | None = None) -> float:
    """How long a file's frames last, in seconds, as its header tells; see `header_of`."""
    return header_of(path, within)[0]


def header_of(path: Path, within: tuple[int, int] | None = None) -> tuple[float, int, int]:
    """Seconds, height and width of a file's frames, as its header tells; raises `MediaError`.

    Args:
        path: The file.
        within: The first byte and the one after the last of media that lie inside it, as in a tar.
    """
    with open_media(path, within) as container:
        stream = stream_of(container, "video", path)
        seconds = (container.duration or 0) / av.time_base
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        if stream.frames and seconds > STILL + stream.frames:
            raise MediaError(f"{path}: is said to last {seconds:.0f} s, with {stream.frames} frames; re-encode it")
        return seconds, stream.height, stream.width


def frame_size(path: Path) -> tuple[int, int]:
    """(height, width) of a file's frames, upright and with square pixels; raises `MediaError`."""
    with explained(path), closing(frames_of(Path(path), "video", None)) as frames:
        for _, frame, stream in frames:
            return orientation(frame).size(frame.height, round(frame.width * pixel_aspect(stream)))
    raise no_video(path)


def origin_of(path: Path) -> float:
    """When frame 0 is shown, in seconds of the container's clock."""
    with closing(frames_of(path, "video", None)) as frames:
        for time, _, _ in frames:
            return time
    raise no_video(path)


def no_video(path: Path) -> MediaError:
    """The error of a file out of which no frame comes."""
    return MediaError(f"{path}: no frame could be decoded from it; re-encode or replace it")


def frames_of(path: Path, kind: str, begin: float | None) -> Generator[tuple[float, Any, Any], None, None]:
    """(time, frame, stream) from at or before `begin`; from the file's start where its index misleads the seek.

    An image file is one frame at time 0.

    Args:
        path: The file.
        kind: "video" or "audio".
        begin: From when on frames are wanted, in seconds of the container's clock; `None` is its start.

    Raises:
        MediaError: The file cannot be read, or is damaged, or its time stamps jump by more than `STILL` seconds.
    """
    if kind == "video" and (still := _still(path)) is not None:
        yield 0.0, still, StillStream()
        return
    for seek in (begin is not None and begin > SEEK_MARGIN, False):
        with open_media(path) as container:
            stream = stream_of(container, kind, path)
            if seek and begin is not None:
                container.seek(math.floor((begin - SEEK_MARGIN) * av.time_base))
            late = seek
            for time, frame in _timed(container, stream, path):
                if late and begin is not None and time > begin:
                    break
                late = False
                yield time, frame, stream
            if not late:
                return


def _still(path: Path) -> av.VideoFrame | None:
    _check_file(path)
    with explained(path):
        return still_of(path)


def _timed(container: InputContainer, stream: Any, path: Path) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times in seconds; one without a timestamp follows the one before."""
    expected, begun, last, count = 0.0, None, None, 0
    for frame in _decoded(container, stream):
        time = expected if frame.time is None else frame.time
        duration = duration_of(frame, stream)
        expected, count = time + duration, count + 1
        begun = time if begun is None else begun
        stands = duration if last is None else max(duration, time - last)
        if stream.type == "video" and (stands > STILL or time - begun > STILL + count):
            raise MediaError(
                f"{path}: its time stamps jump: near {time:.1f} s, after {count} frames, one would stand for "
                f"{stands:.1f} s, and may for {STILL:g} s; re-encode it, or cut it there"
            )
        last = time
        yield time, frame


def _decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The frames of a track, with their transparency, which FFmpeg's own decoders of VP8 and VP9 leave out."""
    name = SEE_THROUGH.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.thread_count = 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def duration_of(frame: Any, stream: Any) -> float:
    """Seconds that a decoded frame lasts."""
    if stream.type == "audio":
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / (stream.average_rate or stream.guessed_rate or 25))


def pixel_aspect(stream: Any) -> Fraction:
    """Width over height of a stream's pixels; raises `ValueError` where it is absurd."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 16) <= aspect <= 16:
        raise ValueError(f"its pixels are said to be {aspect} times as wide as high")
    return aspect


@contextmanager
def open_media(path: Path, within: tuple[int, int] | None = None) -> Iterator[InputContainer]:
    """Opens a local media file, and turns whatever goes wrong in reading it into one sentence."""
    _check_file(path)
    with explained(path):
        # Only local files: a crafted playlist must not fetch anything.
        place = f"file:{path}" if within is None else f"subfile,,start,{within[0]},end,{within[1]},,:{path}"
        options = {"protocol_whitelist": "file" if within is None else "file,subfile"}
        with av.open(place, options=options, metadata_errors="replace") as container:
            kinds = set(container.format.name.split(","))
            if PLAYLISTS & kinds:
                raise MediaError(f"{path}: this is a playlist, not media; give the media file itself")
            if any(kind == "image2" or kind.endswith("_pipe") for kind in kinds):
                raise MediaError(
                    f"{path}: is an image that cannot be used here ({container.format.name}): it is damaged, of a kind "
                    "that is not known, or a video is needed; give a whole JPEG or PNG, or a video"
                )
            yield container


def _check_file(path: Path) -> None:
    with explained(path):
        found = Path(path)
        if not found.is_file():
            if found.exists():
                raise MediaError(f"{path}: is a folder, a pipe or a device, not a file; give a media file")
            raise MediaError(f"{path}: there is no such file; check the path")
        if os.path.getsize(path) == 0:
            raise MediaError(f"{path}: the file is empty; copy or record it again")


def stream_of(container: InputContainer, kind: str, path: Path) -> Any:
    """The track that a player plays: the first with the default flag, else the first; cover art is none.

    Raises:
        MediaError: There is none, or no decoder for it, or its header is absurd.
    """
    streams: Any = container.streams.video if kind == "video" else container.streams.audio
    films = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise MediaError(f"{path}: {MISSING[kind]}")
    stream = next((stream for stream in films if stream.disposition & Disposition.default), films[0])
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} track has an unknown codec; re-encode it, for example as H.264 and AAC")
    if kind == "video" and stream.width * stream.height > MOST_PIXELS:
        raise MediaError(f"{path}: has frames of {stream.width}x{stream.height} pixels; make them smaller")
    if kind == "audio" and not RATES[0] <= stream.codec_context.sample_rate <= RATES[1]:
        raise MediaError(f"{path}: has {stream.codec_context.sample_rate} samples per second; re-encode its audio")
    # Frame threads of a container that a fork inherits hang the child, and at these sizes they gain nothing.
    stream.codec_context.thread_count = 1
    if kind == "video":
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # a later frame may be larger than the header's
    return stream
