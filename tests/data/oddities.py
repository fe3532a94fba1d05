"""Small media files with the oddities of phones, editors and accidents, made on demand."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from vidchat.data.media.read import crop_frames, frame_size, header_of, is_wide, read_audio, read_clip, read_image
from vidchat.dialogue import Clip

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 180, 30), (30, 30, 200), (220, 220, 30)
ONE = 1 << 16
# A display matrix (a, b, c, d) for each EXIF orientation: the stored point (x, y) is shown at (ax + cy, bx + dy).
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def corners(height: int = 32, width: int = 64) -> np.ndarray:
    """Returns an image (H, W, 3) uint8 with a red, green, blue and yellow corner, from top left to bottom right."""
    image = np.empty((height, width, 3), np.uint8)
    top, left = slice(0, height // 2), slice(0, width // 2)
    image[:, :] = YELLOW
    image[top], image[:, left] = GREEN, BLUE
    image[top, left] = RED
    return image


def names(pixels: np.ndarray) -> str:
    """Returns the colours of the corners of (3, H, W) as letters, from top left to bottom right."""
    height, width = pixels.shape[-2:]
    shown = [pixels[:, y, x] for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    colours = dict(zip("RGBY", (RED, GREEN, BLUE, YELLOW), strict=True))
    return "".join(min(colours, key=lambda n: np.abs(colour - np.array(colours[n], float)).sum()) for colour in shown)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an upright frame (H, W, C) as a camera stores it with this EXIF orientation."""
    back: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x, 1),
        7: lambda x: np.rot90(x, 2).transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    return np.ascontiguousarray(back[orientation](upright))


def shoot(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    waveforms: Sequence[np.ndarray] = (),
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    kind: str = "yuv420p",
    source: str = "rgb24",
    **tags: Any,
) -> Path:
    """Writes frames (H, W, C) at 25 fps and audio tracks (channels, n) at 16 kHz.

    Args:
        path: Target file; its suffix selects the container.
        frames: Frames in the format `source`.
        waveforms: Audio tracks in [-1, 1]; the last one has the default flag.
        times: Times of the frames in seconds.
        codec: Video codec.
        kind: Pixel format of the encoded video.
        source: Pixel format of the frames.
        tags: Colour properties of the codec context, to which the frames are converted.
    """
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = *frames[0].shape[:2], kind
        video.codec_context.time_base = Fraction(1, 12800)
        video.codec_context.thread_count = 1
        for name, value in tags.items():
            setattr(video.codec_context, name, value)
        tracks = [
            container.add_stream("aac", rate=16000, layout="mono" if len(s) == 1 else "stereo") for s in waveforms
        ]
        for k, track in enumerate(tracks, 1):
            track.disposition = av.stream.Disposition.default if k == len(tracks) else av.stream.Disposition(0)
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=source)
            frame = frame.reformat(
                format=kind, dst_colorspace=tags.get("colorspace"), dst_color_range=tags.get("color_range")
            )
            frame.pts = round((k / 25 if times is None else times[k]) * 12800)
            frame.time_base = Fraction(1, 12800)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for track, samples in zip(tracks, waveforms, strict=True):
            audio = av.AudioFrame.from_ndarray(
                samples.astype(np.float32), "fltp", "mono" if len(samples) == 1 else "stereo"
            )
            audio.sample_rate, audio.pts, audio.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(track.encode(audio))
            container.mux(track.encode(None))
    return path


def tone(seconds: float = 1.0, amplitude: float = 0.5) -> np.ndarray:
    """Returns a tone (1, n) at 16 kHz."""
    return amplitude * np.sin(np.arange(round(seconds * 16000)) * 0.3)[None]


def with_matrix(path: Path, orientation: int) -> Path:
    """Writes a display matrix into the first track of an mp4."""
    data = bytearray(path.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = (ONE * value for value in MATRICES[orientation])
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def with_title(path: Path, title: bytes) -> Path:
    """Writes a copy of an mp4 with a title of arbitrary bytes."""
    placeholder = "T" * len(title)
    target = path.with_name(f"titled-{path.name}")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        container.metadata["title"] = placeholder
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                container.mux(packet)
    data = target.read_bytes()
    assert placeholder.encode() in data
    target.write_bytes(data.replace(placeholder.encode(), title))
    return target


def readers(path: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields every function that reads a media file, by name."""
    clip, span = Clip(path, "ann"), Clip(path, "ann", start=0.3, end=0.8)
    point: dict[str, Any] = {"fps": 25, "size": (32, 32), "sample_rate": 16000}
    yield "clip", lambda: read_clip(clip, **point)
    yield "span", lambda: read_clip(span, **point)
    yield "frames alone", lambda: read_clip(clip, **point, audio=False, max_seconds=0.4)
    yield "end", lambda: read_clip(clip, **point, audio=False, last=9)
    yield "image", lambda: read_image(path, (32, 32))
    yield "crop", lambda: list(crop_frames(clip, (0.1, 0.1, 0.9, 0.9), 25, 40))
    yield "audio", lambda: read_audio(clip, 16000, 16000)
    yield "audio from a wav", lambda: read_audio(clip, 16000, 16000, wav=path)
    yield "header", lambda: header_of(path)
    yield "header within", lambda: header_of(path, (0, path.stat().st_size if os.path.isfile(path) else 1))
    yield "size", lambda: frame_size(path)
    yield "wide", lambda: is_wide(path)
