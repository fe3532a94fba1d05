"""Media files as containers: their headers, and their decoded frames with time stamps.

Media files are opened only here. They must be local files; every failure becomes one sentence that names the file. Time
stamps are bounded, as a file of 3 kB can claim twelve hours: a frame may last `STILL` seconds, and a video of n frames
may last n + `STILL` seconds.
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
from vidchat.data.media.images import read_still
from vidchat.data.media.media_error import MediaError, explained
from vidchat.data.media.orientation import orientation

SEEK_MARGIN = 1.0  # seconds decoded and discarded before a span, to warm the decoder up
STILL = 30.0  # seconds; longest duration of one frame
RATES = (1000, 768_000)  # lowest and highest sample rate of an audio track
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # codec name -> decoder that supports transparency
PLAYLISTS = {"hls", "concat", "dash", "imf"}  # formats whose files name other files
MISSING = {
    "video": "has no video track; give a video of the person",
    "audio": "has no audio track; add one, or use a configuration without audio",
}


class StillStream(NamedTuple):
    """Stand-in for the video stream of an image file, which is one frame long."""

    type: str = "video"
    sample_aspect_ratio: Fraction | None = None
    average_rate: Fraction = Fraction(25)


def is_wide(path: Path) -> bool:
    """Returns whether a video, upright, is wider than high; raises `MediaError`."""
    height, width = frame_size(path)
    return width > height


def length_of(path: Path, within: tuple[int, int] | None = None) -> float:
    """Returns the duration of a file's video in seconds, from its header; see `header_of`."""
    return header_of(path, within)[0]


def header_of(path: Path, within: tuple[int, int] | None = None) -> tuple[float, int, int]:
    """Returns (seconds, height, width) of a file's video, from its header; raises `MediaError`.

    Args:
        path: Media file, or a file that contains it, such as a tar.
        within: Byte range (begin, end) of the media inside that file; `None` is the whole file.
    """
    with open_media(path, within) as container:
        stream = stream_of(container, "video", path)
        seconds = (container.duration or 0) / av.time_base
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        if stream.frames and seconds > STILL + stream.frames:
            raise MediaError(f"{path}: its header claims {seconds:.0f} s with {stream.frames} frames; re-encode it")
        return seconds, stream.height, stream.width


def frame_size(path: Path) -> tuple[int, int]:
    """Returns (height, width) of a file's frames, upright and with square pixels; raises `MediaError`."""
    with explained(path), closing(frames_of(Path(path), "video", None)) as frames:
        for _, frame, stream in frames:
            return orientation(frame).size(frame.height, round(frame.width * pixel_aspect(stream)))
    raise no_video(path)


def start_time(path: Path) -> float:
    """Returns the time of frame 0 in seconds of the container's clock; raises `MediaError`."""
    with closing(frames_of(path, "video", None)) as frames:
        for time, _, _ in frames:
            return time
    raise no_video(path)


def no_video(path: Path) -> MediaError:
    """Returns the error for a file without a decodable frame."""
    return MediaError(f"{path}: no frame could be decoded from it; re-encode or replace it")


def frames_of(path: Path, kind: str, begin: float | None) -> Generator[tuple[float, Any, Any], None, None]:
    """Yields (time, frame, stream), starting at or before `begin`.

    Where the seek lands too late because of a wrong index, decoding starts again from the beginning of the file. An
    image file is one frame at time 0.

    Args:
        path: Media file.
        kind: Kind of the track, "video" or "audio".
        begin: Time of the first frame needed, in seconds of the container's clock; `None` is the start.

    Raises:
        MediaError: The file cannot be read, is damaged, or its time stamps jump by more than `STILL` seconds.
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
        return read_still(path)


def _timed(container: InputContainer, stream: Any, path: Path) -> Iterator[tuple[float, Any]]:
    """Yields (time, frame), times in seconds; a frame without a time stamp begins at the end of the one before."""
    expected, first, last, count = 0.0, None, None, 0
    for frame in _decoded(container, stream):
        time = expected if frame.time is None else frame.time
        duration = duration_of(frame, stream)
        expected, count = time + duration, count + 1
        first = time if first is None else first
        length = duration if last is None else max(duration, time - last)
        if stream.type == "video" and (length > STILL or time - first > STILL + count):
            raise MediaError(
                f"{path}: its time stamps jump: near {time:.1f} s, after {count} frames, one would last "
                f"{length:.1f} s of at most {STILL:g} s; re-encode it, or cut it there"
            )
        last = time
        yield time, frame


def _decoded(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yields the frames of a track with their transparency, which FFmpeg's own VP8 and VP9 decoders drop."""
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if name is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    decoder: Any = av.CodecContext.create(name, "r")
    decoder.thread_count = 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def duration_of(frame: Any, stream: Any) -> float:
    """Returns the duration of a decoded frame in seconds."""
    if stream.type == "audio":
        return frame.samples / frame.sample_rate
    if frame.duration:
        return float(frame.duration * frame.time_base)
    return float(1 / (stream.average_rate or stream.guessed_rate or 25))


def pixel_aspect(stream: Any) -> Fraction:
    """Returns width over height of a stream's pixels; raises `ValueError` if that is implausible."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not Fraction(1, 16) <= aspect <= 16:
        raise ValueError(f"its header claims pixels {aspect} times as wide as high; re-encode it")
    return aspect


@contextmanager
def open_media(path: Path, within: tuple[int, int] | None = None) -> Iterator[InputContainer]:
    """Opens a local media file; every failure while it is open becomes a `MediaError`."""
    _check_file(path)
    with explained(path):
        # Only local files: a crafted playlist must not fetch anything.
        url = f"file:{path}" if within is None else f"subfile,,start,{within[0]},end,{within[1]},,:{path}"
        options = {"protocol_whitelist": "file" if within is None else "file,subfile"}
        with av.open(url, options=options, metadata_errors="replace") as container:
            kinds = set(container.format.name.split(","))
            if PLAYLISTS & kinds:
                raise MediaError(f"{path}: is a playlist, not media; give the media file itself")
            if any(kind == "image2" or kind.endswith("_pipe") for kind in kinds):
                raise MediaError(
                    f"{path}: is an image that cannot be used here ({container.format.name}): it is damaged, of an "
                    "unsupported format, or a video is needed; give an intact JPEG or PNG, or a video"
                )
            yield container


def _check_file(path: Path) -> None:
    with explained(path):
        file = Path(path)
        if not file.is_file():
            if file.exists():
                raise MediaError(f"{path}: is a folder, a pipe or a device, not a file; give a media file")
            raise MediaError(f"{path}: there is no such file; check the path")
        if os.path.getsize(path) == 0:
            raise MediaError(f"{path}: the file is empty; copy or record it again")


def stream_of(container: InputContainer, kind: str, path: Path) -> Any:
    """Returns the track that a player would play: the first with the default flag, else the first; never cover art.

    Raises:
        MediaError: The track or a decoder for it does not exist, or its header is implausible.
    """
    streams: Any = container.streams.video if kind == "video" else container.streams.audio
    tracks = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not tracks:
        raise MediaError(f"{path}: {MISSING[kind]}")
    stream = next((stream for stream in tracks if stream.disposition & Disposition.default), tracks[0])
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} track has an unknown codec; re-encode it, for example as H.264 and AAC")
    if kind == "video" and stream.width * stream.height > MOST_PIXELS:
        raise MediaError(f"{path}: has frames of {stream.width}x{stream.height} pixels; make them smaller")
    if kind == "audio" and not RATES[0] <= stream.codec_context.sample_rate <= RATES[1]:
        raise MediaError(f"{path}: has {stream.codec_context.sample_rate} samples per second; re-encode its audio")
    # Decoder threads inherited by a fork hang the child, and at these sizes they gain nothing.
    stream.codec_context.thread_count = 1
    if kind == "video":
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # a later frame may be larger
    return stream
