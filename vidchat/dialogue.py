"""Clip, turn and dialogue, and the clock that divides a clip into chunks.

The whole package uses these classes; this module imports nothing else of the package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

Role = Literal["initiator", "responder"]
Branch = Literal["single", "dialogue", "listening", "multi_turn"]
Tier = Literal["pretrain", "sft"]
Split = Literal["train", "val", "test"]


WHOLE_WITHIN_S = 0.5  # a span that lacks less than this at either end is the whole clip


@dataclass(frozen=True)
class TimedText:
    """A word or a segment of a transcript.

    Attributes:
        text: The words.
        start: Start in seconds from the clip's start.
        end: End in seconds from the clip's start.
    """

    text: str
    start: float
    end: float

    def middles(self) -> Iterator[tuple[str, float]]:
        """Yields each word and its middle in seconds from the clip's start."""
        words = self.text.split()
        for k, word in enumerate(words):
            yield word, self.start + (k + 0.5) / len(words) * (self.end - self.start)


@dataclass(frozen=True)
class Clip:
    """One video file, or a span of it, of one person.

    Attributes:
        path: The media file; it is opened as media only.
        speaker: Id of the person; equal strings mean the same person.
        text: Transcript, if known.
        start: Start of the clip in the file, in seconds.
        end: End of the clip in the file, in seconds; `None` is the end of the file.
        scores: Quality scores by name (`dover`, `motion`, `face_blur`, ...), if known.
        truth: Further ground truth, e.g. of a rendered clip (identity, expression, word times).
        words: Words or segments of the transcript with their times, in order; empty if the times are unknown.
        caption: Description of what is seen, if known.
    """

    path: Path
    speaker: str
    text: str | None = None
    start: float = 0.0
    end: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    truth: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[TimedText, ...] = ()
    caption: str | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or (self.end is not None and self.end <= self.start):
            raise ValueError(f"{self.path}: a clip must end after it starts, got {self.start} s to {self.end} s")

    def text_between(self, start: float, end: float, length: float | None = None) -> str | None:
        """Returns the transcript of a span of the clip, `None` if it is unknown.

        A word belongs to the span that holds its middle; those of a segment are taken to be equally long. Without
        times, only a span of the whole clip has a known transcript: a wrong one is worse than none.

        Args:
            start: Start of the span in seconds from the clip's start.
            end: End of the span in seconds from the clip's start.
            length: Length of the clip in seconds, needed if the clip ends where its file does.
        """
        length = length if self.end is None else self.end - self.start
        whole = length is not None and start < WHOLE_WITHIN_S and end > length - WHOLE_WITHIN_S
        if not self.words or (whole and self.text is not None):
            return self.text if whole or not self.text else None
        return " ".join(word for timed in self.words for word, middle in timed.middles() if start <= middle < end)


@dataclass(frozen=True)
class Turn:
    """A clip in a dialogue.

    Attributes:
        role: Role of the person in the dialogue.
        clip: What the person says and does.
        start: Start on the dialogue's clock, in seconds; `None` directly follows the turn before.
    """

    role: Role
    clip: Clip
    start: float | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not self.start >= 0:
            raise ValueError(f"{self.clip.path}: a turn must start at 0 s or later, got {self.start} s")


@dataclass(frozen=True)
class Dialogue:
    """An ordered list of turns on one clock; covers all four branches of the data set."""

    id: str
    turns: tuple[Turn, ...]
    branch: Branch = "dialogue"
    tier: Tier = "sft"
    split: Split = "train"

    def __post_init__(self) -> None:
        if not any(turn.role == "responder" for turn in self.turns):
            raise ValueError(f"dialogue {self.id}: no turn has the role 'responder', so there is nothing to answer")

    @property
    def answer(self) -> Clip:
        """The last turn of the responder, which the model learns to generate."""
        return next(turn.clip for turn in reversed(self.turns) if turn.role == "responder")

    @property
    def question(self) -> Clip | None:
        """The last turn of the initiator, or `None` in the single branch."""
        return next((turn.clip for turn in reversed(self.turns) if turn.role == "initiator"), None)


class ClockError(ValueError):
    """Raised for a video tokenizer and an audio codec whose chunks do not span the same time."""


@dataclass(frozen=True)
class ChunkClock:
    """Exact length of a chunk in frames, codec frames and samples.

    A clip of T chunks has `temporal_stride * T + 1` frames. Frame 0 is the reference and chunk 0; at a stride of 4,
    frames `4(t-1)+1 .. 4t` are chunk t. Audio starts with frame 1: codec frames `F(t-1) .. Ft-1` belong to chunk t.

    Attributes:
        fps: Frames per second.
        temporal_stride: Number of frames in a chunk (the video VAE's temporal stride).
        sample_rate: Audio samples per second.
        hop: Number of samples in a codec frame.
    """

    fps: int
    temporal_stride: int
    sample_rate: int
    hop: int

    def __post_init__(self) -> None:
        if self.codec_frames.denominator != 1:
            raise ClockError(
                f"the video tokenizer makes {float(self.chunks_per_second):g} chunks/s ({self.fps} fps / stride "
                f"{self.temporal_stride}) and the audio codec {self.sample_rate / self.hop:g} codec frames/s, so a "
                f"chunk would hold {float(self.codec_frames):g} codec frames; choose a pair whose rates divide"
            )

    @property
    def chunks_per_second(self) -> Fraction:
        return Fraction(self.fps, self.temporal_stride)

    @property
    def codec_frames(self) -> Fraction:
        """Number of codec frames in a chunk, as a fraction; checked to be whole at construction."""
        return Fraction(self.sample_rate, self.hop) / self.chunks_per_second

    @property
    def codec_frames_per_chunk(self) -> int:
        """F, the number of codec frames in a chunk."""
        return int(self.codec_frames)

    @property
    def samples_per_chunk(self) -> int:
        return self.codec_frames_per_chunk * self.hop

    def frames(self, chunks: int) -> int:
        """Returns the number of frames in a clip of T chunks, the reference included: stride * T + 1."""
        return self.temporal_stride * chunks + 1

    def samples(self, chunks: int) -> int:
        """Returns the number of audio samples in a number of chunks."""
        return self.samples_per_chunk * chunks

    def chunks(self, frames: int) -> int:
        """Returns the number of whole chunks in a clip of a number of frames, the reference included."""
        return max(0, (frames - 1) // self.temporal_stride)
