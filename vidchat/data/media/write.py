"""Incremental writing of frames and audio to an mp4 that ordinary players read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
import torch
from torch import Tensor

from vidchat.data.atomic_path import remove_orphans
from vidchat.runtime.atomic import check_target

# An AAC frame has 1024 samples, and decoders return whole frames: 21 ms at 48 kHz, less than a video frame, but 64 ms
# at 16 kHz.
AAC_RATE = 48_000
AAC_BITS = 128_000
# x264's macroblock tree reads uninitialised memory (seen with AVX-512): one clip in three would differ.
VIDEO_OPTIONS = {"preset": "veryfast", "crf": "16", "x264-params": "mbtree=0"}
SMPTE170M = 6  # colour matrix of the conversion from RGB, written so that players need not guess


class ClipWriter:
    """Writes one mp4 (H.264 yuv420p and AAC mono) incrementally; the file appears when the block succeeds.

    The first sample and the first frame are of the same instant. In frames of odd size the last row or column is
    repeated, as yuv420p needs even sizes.

    Args:
        path: Target file; its folder is created.
        fps: Frames per second.
        sample_rate: Samples per second of the audio, or `None` for a file without audio.

    Raises:
        ValueError: `path` is a folder, a pipe or a device.
        OSError: The file cannot be written; the error names it.
    """

    def __init__(self, path: Path, fps: int, sample_rate: int | None) -> None:
        self.path, self.fps, self.sample_rate = Path(path), fps, sample_rate
        self.frames = 0
        self.samples = 0
        self._video: Any = None
        self._audio: Any = None
        self._encoder: Any = None

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")

    def __enter__(self) -> Self:
        check_target(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(self.path)
        with self._naming():  # `file:`, as a name with a colon is a protocol to FFmpeg
            self._container = av.open(f"file:{self._partial}", "w", format="mp4", options={"movflags": "+faststart"})
        return self

    def write(self, frames: Tensor, waveform: Tensor | None = None) -> None:
        """Appends frames (n, 3, H, W) uint8 and a waveform (m,) float in [-1, 1]; either may be empty."""
        if len(frames) and self._video is None:
            self._add_streams(*frames.shape[-2:])
        if self._video is None:
            raise ValueError(f"{self.path}: the first write must contain a frame")
        with self._naming():
            for frame in frames.to(torch.uint8).cpu().numpy():
                self._write_frame(frame)
            if waveform is not None and waveform.numel():
                self._write_audio(waveform.detach().float().cpu().numpy())

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Turns FFmpeg's errors, such as a full disk, into an `OSError` that names the file."""
        try:
            yield
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error

    def _add_streams(self, height: int, width: int) -> None:
        video = self._container.add_stream("libx264", rate=self.fps, options=VIDEO_OPTIONS)
        video.height, video.width, video.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        video.codec_context.thread_count = 1  # equal bytes on every machine, and no threads that could hang a fork
        video.codec_context.colorspace = SMPTE170M
        self._video = video
        if self.sample_rate is not None:
            self._audio = self._container.add_stream("aac", rate=AAC_RATE, layout="mono")
            self._audio.bit_rate = AAC_BITS
            self._encoder = _aac_encoder()

    def _write_frame(self, pixels: np.ndarray) -> None:
        height, width = pixels.shape[-2:]
        even = np.pad(pixels.transpose(1, 2, 0), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame.pts, frame.time_base = self.frames, Fraction(1, self.fps)
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    def _write_audio(self, waveform: np.ndarray) -> None:
        rate = self.sample_rate
        if self._audio is None or rate is None:
            raise ValueError(f"{self.path}: audio was passed to a writer without a sample rate")
        frame = av.AudioFrame.from_ndarray(np.clip(waveform, -1, 1)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, self.samples, Fraction(1, rate)
        self._mux_audio(frame)
        self.samples += len(waveform)

    def _mux_audio(self, frame: av.AudioFrame | None) -> None:
        for packet in self._encoder.encode(frame):
            packet.stream = self._audio
            self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._naming():
                self._close(failed=kind is not None)
            if kind is None:
                os.replace(self._partial, self.path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _close(self, failed: bool) -> None:
        try:
            if not failed:
                self._finish()
        finally:
            self._encoder = None
            with suppress(av.error.FFmpegError) if failed or not self.frames else nullcontext():
                self._container.close()

    def _finish(self) -> None:
        if not self.frames:
            raise ValueError(f"{self.path}: no frame was written; write at least one before closing")
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._mux_audio(None)


def _aac_encoder() -> Any:
    """Returns an encoder that belongs to no container, and so to no reference cycle.

    An encoder resamples with a thread pool. The encoder of a container is garbage-collected at some later time; in a
    forked data loader worker, which inherits the pool but not its threads, this would hang.
    """
    encoder: Any = av.CodecContext.create("aac", "w")
    encoder.sample_rate, encoder.layout, encoder.format = AAC_RATE, "mono", "fltp"
    encoder.bit_rate, encoder.time_base = AAC_BITS, Fraction(1, AAC_RATE)
    return encoder


def write_clip(path: Path, frames: Tensor, waveform: Tensor | None, fps: int, sample_rate: int) -> None:
    """Writes frames (n, 3, H, W) uint8 and a waveform (m,) float (or `None`) as one mp4."""
    with ClipWriter(path, fps, None if waveform is None else sample_rate) as writer:
        writer.write(frames, waveform)
