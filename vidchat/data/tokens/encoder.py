"""Clips to tokens: latents and codes of the same chunks, to the frame, and a frozen thinker's features.

A segment of a clip is 4T+1 frames. Its latents are chunks 0..T, chunk 0 being frame 0 alone; its audio starts with
frame 1, so codec frames F(t-1) .. Ft-1 belong to chunk t. Encoding therefore starts at a segment's own first frame:
a chunk-0 latent cannot be cut out of the middle of a longer encoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vidchat.data.media.audio_check import refuse_broken_audio
from vidchat.data.media.read import Media, MediaError, is_wide, read_clip
from vidchat.dialogue import ChunkClock, Clip

# Which chunks of a clip: its first ones (a turn of the responder), its last ones (a turn of the initiator, whose end
# the answer follows), or all of them in consecutive spans, each with a reference of its own (the single branch).
Part = Literal["first", "last", "spans"]
Track = Literal["latents", "codes", "features"]
VERSION = 3  # of the encoding; another number makes old tokens void


class VideoEncoder(Protocol):
    """A video tokenizer, as encoding needs it: frames (B, 3, 4T+1, H, W) in [-1, 1] to latents (B, C, T+1, h, w)."""

    temporal_stride: int

    def encode(self, frames: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...
    def to(self, device: Any) -> Any: ...


class AudioEncoder(Protocol):
    """An audio codec, as encoding needs it: waveform (B, n * hop) to codes (B, n, K)."""

    sample_rate: int
    hop: int

    def encode(self, waveform: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...
    def to(self, device: Any) -> Any: ...


class FeatureEncoder(Protocol):
    """A frozen thinker, as encoding needs it: a clip to features (P, D)."""

    def encode(self, media: Media) -> Tensor: ...
    def fingerprint(self) -> str: ...
    def to(self, device: Any) -> Any: ...
    def unload(self) -> None: ...  # frees its memory until it is used again


@dataclass(frozen=True)
class Segment:
    """A part of a clip, at most `max_chunks` chunks of it (of each span of it), and whether a thinker sees it."""

    clip: Clip
    part: Part
    max_chunks: int
    features: bool = False


@dataclass
class Tokens:
    """One encoded span.

    Attributes:
        latents: (T+1, C, h, w) floating point.
        codes: (T, F, K) integers, or `None` without audio.
    """

    latents: Tensor
    codes: Tensor | None


@dataclass(frozen=True)
class MediaFormat:
    """The format that clips are brought to before they are encoded, and the dtype of stored tokens.

    Attributes:
        fps: Frames per second.
        size: (height, width) of a frame.
        allow_portrait: Whether clips that lie the other way round than `size` are brought to (width, height): batches
            then hold frames of one shape each.
        dtype: The dtype of latents and features on the disk: `float32`, or `float16` or `bfloat16` for half the bytes.
    """

    fps: int
    size: tuple[int, int]
    allow_portrait: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class ClipEncoder:
    """Reads segments of clips at the working rates and encodes them.

    Args:
        video_vae: Encodes frames as latents.
        audio_codec: Encodes audio as codes, or `None` to ignore audio.
        fps: Working frames per second.
        size: (height, width) of the working frame.
        allow_portrait: Whether clips that lie the other way round are brought to (width, height).
        thinker: Encodes frames and audio as features, or `None`.

    Raises:
        ClockError: The tokenizers' chunks do not span the same time.
    """

    def __init__(
        self,
        video_vae: VideoEncoder,
        audio_codec: AudioEncoder | None,
        fps: int,
        size: tuple[int, int],
        allow_portrait: bool = False,
        thinker: FeatureEncoder | None = None,
    ) -> None:
        self.video_vae, self.audio_codec, self.thinker = video_vae, audio_codec, thinker
        self.fps, self.size, self.allow_portrait = fps, (size[0], size[1]), allow_portrait
        stride = video_vae.temporal_stride
        # Without audio there is still a clock; its sample rate is one that divides.
        rate, hop = (audio_codec.sample_rate, audio_codec.hop) if audio_codec is not None else (fps, stride)
        self.clock = ChunkClock(fps, stride, rate, hop)

    def read(self, segment: Segment) -> list[Media]:
        """Decodes a segment: one span of 4T+1 frames with T in 1 .. max_chunks, or all spans of them.

        Raises:
            MediaError: The clip cannot be decoded, or holds less than a chunk.
        """
        longest = self.clock.frames(segment.max_chunks)
        height, width = self.size
        turned = self.allow_portrait and height != width and is_wide(segment.clip.path) != (width > height)
        media = read_clip(
            segment.clip,
            fps=self.fps,
            size=(width, height) if turned else self.size,
            sample_rate=self.clock.sample_rate,
            audio=self.audio_codec is not None,
            max_seconds=longest / self.fps if segment.part == "first" else None,
            last=longest if segment.part == "last" else None,
        )
        refuse_broken_audio(media, segment.clip.path)
        count, least = len(media.frames), self.clock.frames(1)
        if count < least:
            raise MediaError(
                f"{segment.clip.path}: too short, with {count} frames at {self.fps} fps; at least {least} are needed, "
                "so give a longer clip or remove it"
            )
        length = min(longest, self.clock.frames(self.clock.chunks(count)))
        first = {"first": 0, "last": count - length, "spans": 0}[segment.part]
        starts = range(first, count - least + 1, longest) if segment.part == "spans" else [first]
        return [self._cut(media, start, min(longest, count - start)) for start in starts]

    def _cut(self, media: Media, first: int, count: int) -> Media:
        """Cuts out at most `count` frames from `first` on, and the audio after frame `first`, in whole chunks."""
        chunks = self.clock.chunks(count)
        begin = round((first + 1) * self.clock.sample_rate / self.fps)
        waveform = media.waveform[begin : begin + self.clock.samples(chunks)]
        frames = media.frames[first : first + self.clock.frames(chunks)]
        return Media(frames, waveform, media.fps, media.sample_rate)

    def encode(self, spans: Sequence[Media], device: torch.device | str = "cpu") -> list[Tokens]:
        """Encodes spans from `read`, all of one shape, in one batch."""
        tracks: list[Track] = ["latents"] if self.audio_codec is None else ["latents", "codes"]
        return [Tokens(tokens["latents"], tokens.get("codes")) for tokens in self.encode_tracks(spans, tracks, device)]

    @torch.inference_mode()
    def encode_tracks(
        self, spans: Sequence[Media], tracks: Sequence[Track], device: torch.device | str = "cpu"
    ) -> list[dict[Track, Tensor]]:
        """Returns the tokens of each span for the given tracks; see `Tokens` for their shapes."""
        encoded: list[dict[Track, Tensor]] = [{} for _ in spans]
        if "latents" in tracks:
            frames = torch.stack([span.frames for span in spans]).to(device).transpose(1, 2)
            latents = self.video_vae.encode(frames.float() / 127.5 - 1).transpose(1, 2).float().cpu()
            for span_tokens, tokens in zip(encoded, latents, strict=True):
                span_tokens["latents"] = tokens.clone()
        if "codes" in tracks and self.audio_codec is not None:
            codes = self.audio_codec.encode(torch.stack([span.waveform for span in spans]).to(device))
            codes = codes.unflatten(1, (-1, self.clock.codec_frames_per_chunk)).cpu()
            for span_tokens, tokens in zip(encoded, codes, strict=True):
                span_tokens["codes"] = tokens.clone()
        if "features" in tracks and self.thinker is not None:
            for span_tokens, span in zip(encoded, spans, strict=True):
                span_tokens["features"] = self.thinker.encode(span).float().cpu()
        return encoded
