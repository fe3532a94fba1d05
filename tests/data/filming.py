"""Test films with flashes and tones at known instants, and the detection of these in decoded media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from torch import Tensor

from vidchat.data.media.read import Media


@dataclass(frozen=True)
class Film:
    """Settings of a test film.

    Attributes:
        name: File name; its suffix selects the container.
        fps: Frames per second.
        rate: Samples per second.
        layout: Layout of the audio channels.
        size: (width, height).
        codecs: Video codec and audio codec.
        options: Options of the container.
        keep: Share of the frames that are written; the others are dropped, as recorders do.
        seconds: Duration in seconds.
        shift: Seconds added to all time stamps.
    """

    name: str
    fps: Fraction = Fraction(25)
    rate: int = 48000
    layout: str = "stereo"
    size: tuple[int, int] = (64, 48)
    codecs: tuple[str, str] = ("libx264", "aac")
    options: dict[str, str] = field(default_factory=dict)
    keep: float = 1.0
    seconds: float = 12.0
    shift: float = 0.0


FLASHES = (1.0, 3.0, 6.02, 9.0, 11.01)  # seconds; each is white for 0.2 s, with a tone as long
LASTS = 0.2


def is_on(time: np.ndarray) -> np.ndarray:
    return np.any([(time >= t - 1e-9) & (time < t + LASTS - 1e-9) for t in FLASHES], axis=0)


def shoot(folder: Path, film: Film) -> Path:
    """Writes the film."""
    path = folder / film.name
    with av.open(str(path), "w", options=film.options) as container:
        video = container.add_stream(film.codecs[0], rate=film.fps)
        video.width, video.height = film.size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.time_base = Fraction(1, 90000)
        audio = container.add_stream(film.codecs[1], rate=film.rate, layout=film.layout)
        _shoot_frames(container, video, film)
        _record(container, audio, film)
    return path


def _shoot_frames(container: av.container.OutputContainer, video: av.VideoStream, film: Film) -> None:
    generator = np.random.default_rng(0)
    for k in range(round(film.seconds * float(film.fps))):
        time = float(k / film.fps)
        changes = bool(is_on(np.array(time))) != bool(is_on(np.array(time - float(1 / film.fps))))
        if not changes and k and generator.random() > film.keep:
            continue
        level = 235 if is_on(np.array(time)) else 20
        frame = av.VideoFrame.from_ndarray(np.full((film.size[1], film.size[0], 3), level, np.uint8), format="rgb24")
        frame.pts, frame.time_base = round((time + film.shift) * 90000), Fraction(1, 90000)
        container.mux(video.encode(frame))
    container.mux(video.encode(None))


def _record(container: av.container.OutputContainer, audio: av.AudioStream, film: Film) -> None:
    time = np.arange(round(film.seconds * film.rate)) / film.rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * time) * is_on(time)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(
        tone[None].repeat(audio.codec_context.layout.nb_channels, 0), "fltp", film.layout
    )
    frame.sample_rate, frame.pts, frame.time_base = film.rate, round(film.shift * film.rate), Fraction(1, film.rate)
    container.mux(audio.encode(frame))
    container.mux(audio.encode(None))


def shown_from(film: Film) -> list[float]:
    """Returns the time of the first frame of each flash, at the film's frame rate."""
    return [float(-(-Fraction(t).limit_denominator(1000) * film.fps // 1) / film.fps) for t in FLASHES]


def flashes(frames: Tensor, fps: int) -> np.ndarray:
    """Returns the times at which frames (N, 3, H, W) turn white, in seconds."""
    bright = frames.float().mean((1, 2, 3)).numpy() > 127
    return (np.flatnonzero(np.diff(bright.astype(int)) > 0) + 1) / fps


def tones(waveform: Tensor, rate: int) -> np.ndarray:
    """Returns the times at which tones begin in a waveform (n,), in seconds, to within a few milliseconds."""
    window = round(rate * 0.004)
    loud = np.convolve(np.abs(waveform.numpy()), np.ones(window) / window, "same") > 0.12
    starts = np.flatnonzero(np.diff(loud.astype(int)) > 0) / rate
    onsets: list[float] = []
    for start in starts:
        if not onsets or start - onsets[-1] > 2 * LASTS:
            onsets.append(float(start))
    return np.array(onsets)


def offsets(media: Media, shown: Sequence[float], heard: Sequence[float] = FLASHES) -> np.ndarray:
    """Returns the delays of flashes against `shown` and tones against `heard`, (flashes, 2), in seconds."""
    flash, tone = flashes(media.frames, media.fps), tones(media.waveform, media.sample_rate)
    assert len(flash) == len(shown), (flash, shown)
    assert len(tone) == len(heard), (tone, heard)
    return np.stack([flash - shown, tone - heard], axis=1)
