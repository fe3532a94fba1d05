"""Clips to tokens: latents and codes of the same chunks, to the frame.

A piece of a clip is 4T+1 pictures. Its latents are chunks 0..T, chunk 0 being picture 0 alone; its sound starts with
picture 1, so codec frames F(t-1) .. Ft-1 belong to chunk t. Encoding therefore starts at a piece's own first picture:
a chunk-0 latent cannot be cut out of the middle of a longer encoding.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vidchat.data.media import Media, MediaError, read_clip
from vidchat.dialogue import ChunkClock, Clip

# Which chunks of a clip: its first ones (an answer), its last ones (a question, whose end the answer follows), or all
# of them in consecutive spans, each with a reference of its own (the single branch).
Part = Literal["first", "last", "spans"]
VERSION = 1  # of what is computed here; another number makes old token files void


class VideoEncoder(Protocol):
    """What is needed of a video tokenizer: pictures (B, 3, 4T+1, H, W) in [-1, 1] to latents (B, C, T+1, h, w)."""

    temporal_stride: int

    def encode(self, pictures: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...
    def to(self, device: Any) -> Any: ...


class AudioEncoder(Protocol):
    """What is needed of an audio codec: waveform (B, n * hop) to codes (B, n, K)."""

    sample_rate: int
    hop: int

    def encode(self, waveform: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...
    def to(self, device: Any) -> Any: ...


@dataclass(frozen=True)
class Piece:
    """A part of a clip, at most `max_chunks` chunks of it (of each span of it)."""

    clip: Clip
    part: Part
    max_chunks: int

    @property
    def name(self) -> str:
        """Names the piece's token file. A file that was changed since has another name."""
        clip, stat = self.clip, self.clip.path.stat()
        whole = [
            str(clip.path.resolve()),
            clip.start,
            clip.end,
            stat.st_size,
            stat.st_mtime_ns,
            self.part,
            self.max_chunks,
        ]
        return f"{clip.path.stem}-{hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:12]}"


@dataclass
class Tokens:
    """One encoded piece: latents (T+1, C, h, w) float32 and codes (T, F, K) int64, or `None` without sound."""

    latents: Tensor
    codes: Tensor | None


class ClipEncoder:
    """Reads pieces of clips at the working rates and encodes them.

    Args:
        video_vae: Pictures to latents.
        audio_codec: Sound to codes, or `None` to leave sound alone.
        fps: Working pictures per second.
        size: (height, width) of the working picture.

    Raises:
        ClockError: The tokenizers' chunks do not span the same time.
    """

    def __init__(
        self, video_vae: VideoEncoder, audio_codec: AudioEncoder | None, fps: int, size: tuple[int, int]
    ) -> None:
        self.video_vae, self.audio_codec, self.fps, self.size = video_vae, audio_codec, fps, (size[0], size[1])
        stride = video_vae.temporal_stride
        # Without sound there is still a clock; its sample rate is one that divides.
        rate, hop = (audio_codec.sample_rate, audio_codec.hop) if audio_codec is not None else (fps, stride)
        self.clock = ChunkClock(fps, stride, rate, hop)

    def read(self, piece: Piece) -> list[Media]:
        """Decodes a piece: one span of 4T+1 pictures with T in 1 .. max_chunks, or all spans of them.

        Raises:
            MediaError: The clip cannot be decoded, or holds less than a chunk.
        """
        longest = self.clock.pictures(piece.max_chunks)
        media = read_clip(
            piece.clip,
            fps=self.fps,
            size=self.size,
            sample_rate=self.clock.sample_rate,
            audio=self.audio_codec is not None,
            max_seconds=longest / self.fps if piece.part == "first" else None,
        )
        count, least = len(media.pictures), self.clock.pictures(1)
        if count < least:
            raise MediaError(
                f"{piece.clip.path}: too short, with {count} pictures at {self.fps} fps; at least {least} are needed, "
                "so give a longer clip or remove it"
            )
        kept = min(longest, self.clock.pictures(self.clock.chunks(count)))
        first = {"first": 0, "last": count - kept, "spans": 0}[piece.part]
        starts = range(first, count - least + 1, longest) if piece.part == "spans" else [first]
        return [self._cut(media, start, min(longest, count - start)) for start in starts]

    def _cut(self, media: Media, first: int, count: int) -> Media:
        """At most `count` pictures from `first` on, and the sound from picture `first` on, in whole chunks."""
        chunks = self.clock.chunks(count)
        begin = round((first + 1) * self.clock.sample_rate / self.fps)
        waveform = media.waveform[begin : begin + self.clock.samples(chunks)]
        pictures = media.pictures[first : first + self.clock.pictures(chunks)]
        return Media(pictures, waveform, media.fps, media.sample_rate)

    @torch.inference_mode()
    def encode(self, spans: list[Media], device: torch.device | str = "cpu") -> list[Tokens]:
        """Encodes spans from `read`, all of one length, in one batch."""
        pictures = torch.stack([span.pictures for span in spans]).to(device).transpose(1, 2)
        latents = self.video_vae.encode(pictures.float() / 127.5 - 1).transpose(1, 2).float().cpu()
        if self.audio_codec is None:
            return [Tokens(one, None) for one in latents.clone()]
        codes = self.audio_codec.encode(torch.stack([span.waveform for span in spans]).to(device))
        grouped = codes.unflatten(1, (-1, self.clock.frames_per_chunk)).cpu()
        return [Tokens(one, sound) for one, sound in zip(latents.clone(), grouped.clone(), strict=True)]
