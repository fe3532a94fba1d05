"""Encodes what a model hears as it arrives, live or from a file, in memory that does not grow with time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from vidchat.data.media.audio_check import refuse_broken_audio
from vidchat.data.media.pixels import from_bytes
from vidchat.data.media.read import Media, MediaError, length_of, read_audio, stream_frames
from vidchat.dialogue import ChunkClock, Clip
from vidchat.model.generation_state import Chunk
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.video import VideoTokenizer

MARGIN = 1.0  # seconds of audio read beyond a clip's length, because durations in headers are not exact


class Heard(NamedTuple):
    """A chunk that is heard, with the frames and the samples that it encodes.

    Attributes:
        chunk: The encoded chunk, for B = 1.
        frames: (4, 3, H, W) uint8.
        waveform: (samples,) in [-1, 1].
        over: Whether the clip is over, and its person waits.
    """

    chunk: Chunk
    frames: Tensor
    waveform: Tensor
    over: bool = False


class HeardStream:
    """Encodes one person's frames and samples as they arrive.

    Frame 0 and its audio are not heard: chunk 1 is frames 1..4 with their audio, as in training. A codec that looks
    ahead completes a chunk `delay` seconds after its last sample: 60 ms for the demo's, 0 for EnCodec and Mimi. Live
    talk waits for it, and so ticks that much later than the chunk ends. (Silence pushed first would save the wait, but
    would shift the voice against the lips, which no model has seen.)

    Args:
        video_vae: The model's video tokenizer.
        audio_codec: The model's audio codec; `None` for a model without audio.
        clock: The clock of both.
        device: Device of the tokenizers.
    """

    def __init__(
        self,
        video_vae: VideoTokenizer,
        audio_codec: AudioCodec | None,
        clock: ChunkClock,
        device: torch.device | str = "cpu",
    ) -> None:
        self._video, self._audio = video_vae.encoder_stream(), audio_codec.encoder_stream() if audio_codec else None
        self._device, self._codec_frames = device, clock.codec_frames_per_chunk
        self.delay = audio_codec.look_ahead / clock.sample_rate if audio_codec else 0.0
        self._latents: deque[Tensor] = deque()  # (1, C, h, w) each, of chunks that wait for their codes
        self._codes: Tensor | None = None  # (1, n, K), of chunks that wait for their latents
        self._first = True  # whether frame 0 is still to come
        self._skip = round(clock.sample_rate / clock.fps)  # samples of frame 0 that are still to come

    def push(self, frames: Tensor, waveform: Tensor) -> list[Chunk]:
        """Returns the chunks that the next frames and samples complete.

        Args:
            frames: Frames (n, 3, H, W) uint8, from frame 0 on.
            waveform: Samples (m,) in [-1, 1], from the instant of frame 0 on; any number, ignored without a codec.
        """
        if len(frames):
            latents = self._video.push(from_bytes(frames.to(self._device)))
            self._latents.extend(latents.unbind(2)[self._first :])
            self._first = False
        heard, self._skip = waveform[self._skip :], max(0, self._skip - len(waveform))
        if self._audio is not None and len(heard):
            self._add(self._audio.push(heard.to(self._device)[None]))
        return self._complete()

    def finish(self) -> list[Chunk]:
        """Ends the stream; returns the chunks that silence completes."""
        if self._audio is not None and self._codes is not None:
            self._add(self._audio.finish())
        return self._complete()

    def _add(self, codes: Tensor) -> None:
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=1)

    def _complete(self) -> list[Chunk]:
        """Takes out the chunks that have both latents and codes."""
        chunks = []
        while self._latents and (self._audio is None or self._has_codes()):
            codes = None
            if self._codes is not None:
                codes, self._codes = self._codes[:, : self._codec_frames], self._codes[:, self._codec_frames :]
            chunks.append(Chunk(self._latents.popleft(), codes))
        return chunks

    def _has_codes(self) -> bool:
        return self._codes is not None and self._codes.shape[1] >= self._codec_frames


def hear_clip(
    clip: Clip, stream: HeardStream, clock: ChunkClock, size: tuple[int, int], audio: bool, waits: bool = False
) -> Iterator[Heard]:
    """Reads a clip of any length and encodes its whole chunks 1..U, one by one.

    They equal those of `ClipEncoder.encode` on the whole clip, except for rounding.

    Args:
        clip: The file, or a span of it.
        stream: A new stream.
        clock: The model's clock.
        size: (height, width) of its frames.
        audio: Whether the clip's audio is heard.
        waits: Whether the person stays after the clip, without an end: its last frame, and silence.

    Raises:
        MediaError: The clip cannot be decoded, or is shorter than a chunk.
    """
    waiting: deque[tuple[Media, bool]] = deque()
    for index, (piece, over) in enumerate(_and_then_wait(_pieces(clip, clock, size, audio), waits)):
        if index:  # frame 0 is not heard
            waiting.append((piece, over))
        for chunk in stream.push(piece.frames, piece.waveform):
            yield _heard(chunk, *waiting.popleft())
    for chunk in stream.finish():
        yield _heard(chunk, *waiting.popleft())


def _heard(chunk: Chunk, media: Media, over: bool) -> Heard:
    return Heard(chunk, media.frames, media.waveform, over)


def _and_then_wait(pieces: Iterator[Media], waits: bool) -> Iterator[tuple[Media, bool]]:
    """Yields the pieces of a clip and then, if its person waits, the last frame and silence for ever."""
    for piece in pieces:
        yield piece, False
    silent = replace(piece, frames=piece.frames[-1:].expand_as(piece.frames), waveform=torch.zeros_like(piece.waveform))
    while waits:
        yield silent, True


def _pieces(clip: Clip, clock: ChunkClock, size: tuple[int, int], audio: bool) -> Iterator[Media]:
    """Yields frame 0, and then the frames of each whole chunk, with their audio."""
    seconds = (length_of(clip.path) if clip.end is None else clip.end) - clip.start
    waveform, first = _read_audio(clip, max(seconds, 0) + MARGIN, clock, audio), round(clock.sample_rate / clock.fps)
    with closing(stream_frames(clip, clock.fps, size)) as frames:
        begin, end, count = 0, first, 1
        while len(piece := [torch.from_numpy(frame) for frame in islice(frames, count)]) == count:
            if end > len(waveform):  # the header is wrong
                waveform = _read_audio(clip, 2 * end / clock.sample_rate, clock, audio)
            yield Media(torch.stack(piece), waveform[begin:end], clock.fps, clock.sample_rate)
            begin, end, count = end, end + clock.samples_per_chunk, clock.temporal_stride
    if begin <= first:
        raise MediaError(
            f"{clip.path}: too short, with fewer than {clock.frames(1)} frames at {clock.fps} fps; give a longer clip"
        )


def _read_audio(clip: Clip, seconds: float, clock: ChunkClock, audio: bool) -> Tensor:
    """Reads the first seconds of a clip's audio; silence if it is not heard."""
    length = round(seconds * clock.sample_rate)
    if not audio:
        return torch.zeros(length)
    waveform = torch.from_numpy(read_audio(clip, length, clock.sample_rate))
    refuse_broken_audio(Media(torch.empty(0), waveform, clock.fps, clock.sample_rate), clip.path)
    return waveform
