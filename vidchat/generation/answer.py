"""Generates a responder's clip from files: the initiator's clip and an image of the responder."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import INITIATOR, ChunkBatch, collate
from vidchat.conditions.base import QuestionError
from vidchat.conditions.text import MAX_TEXT
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import ClipWriter, Media, MediaError, read_image
from vidchat.data.tokens.encoder import ClipEncoder
from vidchat.dialogue import Clip
from vidchat.generation.framing import answer_size, warn_of_cropping
from vidchat.generation.heard import encode_heard, read_heard
from vidchat.generation.stream import GeneratedChunk, GenerationSettings, stream_answer
from vidchat.release import Release
from vidchat.runtime.errors import user_message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """The inputs of an answer.

    Attributes:
        reference: An image of the responder, or a video whose first frame is used.
        initiator: The initiator's clip, for a model that listens (`dyadic`): a file, or a span of a file as a `Clip`.
            Of a clip of more than 30 s, the model hears the last 30 s.
        text: The text that the responder says, for a model that takes text (`conditioned`); at most `MAX_TEXT` tokens.
        voice: A clip of the responder's voice, for a model that takes one.
        scores: Quality scores to aim for, by name, in standard deviations from the mean of the training data.
        conditions: Inputs of further conditions by name, for a model that has conditions of other packages.
    """

    reference: Path
    initiator: Path | Clip | None = None
    text: str | None = None
    voice: Path | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def condition_inputs(self) -> dict[str, Any]:
        """The inputs of conditions that are not `None`, by the name of the condition."""
        inputs = {"text": self.text, "voice": self.voice, "scores": self.scores or None, **self.conditions}
        return {name: value for name, value in inputs.items() if value is not None}


class PairsError(ValueError):
    """Some pairs of a benchmark could not be answered."""


@dataclass
class Timing:
    """Speed of the generation of an answer.

    Attributes:
        ready: Time at which each chunk was decoded, in seconds since the condition was encoded.
        chunk: Duration of a chunk in seconds.
    """

    ready: list[float] = field(default_factory=list)
    chunk: float = 0.0

    @property
    def first_chunk(self) -> float:
        """Seconds until the first chunk was decoded."""
        return self.ready[0] if self.ready else 0.0

    @property
    def total(self) -> float:
        """Seconds until all chunks were decoded."""
        return self.ready[-1] if self.ready else 0.0

    @property
    def duration(self) -> float:
        """Duration of the answer in seconds."""
        return self.chunk * len(self.ready)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation per second of answer; below 1 is faster than real time."""
        return self.total / max(self.duration, 1e-9)

    def log(self) -> dict[str, Any]:
        """Returns the generator's log, in the JSON format of docs/reference/bench.md."""
        chunks = [{"ready_s": round(ready, 4), "media_s": self.chunk} for ready in self.ready]
        return {
            "chunks": chunks,
            "first_chunk_s": round(self.first_chunk, 4),
            "real_time_factor": round(self.real_time_factor, 4),
        }


def check_question(release: Release, question: Question) -> None:
    """Checks, before any other work, that a question has the inputs that the model is conditioned on.

    Raises:
        QuestionError: an input is missing or unknown.
        MediaError: a file does not exist.
    """
    inputs, request = question.condition_inputs, _Request(release, question)
    needs_initiator = release.hears or any("question" in condition.needs for condition in release.conditions.values())
    if needs_initiator and question.initiator is None:
        raise QuestionError("this model answers an initiator's clip: give initiator=CLIP.mp4")
    for name, condition in release.conditions.items():
        with _naming(name, inputs.get(name)):
            condition.check(inputs.get(name), request)
    unknown = [name for name in ("scores", *question.conditions) if name in inputs and name not in release.conditions]
    if unknown:
        raise QuestionError(
            f"this model was trained without {unknown[0]}; its conditions are {', '.join(release.conditions) or 'none'}"
        )
    for source in (question.reference, question.initiator, question.voice):
        if source is not None and not os.path.isfile(_clip(source).path):
            raise MediaError(f"{_clip(source).path} does not exist; give the path of a media file")


def read_question(release: Release, question: Question, device: torch.device | str = "cpu") -> ChunkBatch:
    """Reads and encodes the inputs of an answer as a batch of size 1.

    Args:
        release: The model with its tokenizers, on `device`.
        question: The inputs.
        device: Device of the batch.

    Raises:
        QuestionError: an input that the model needs is missing.
        MediaError: a file cannot be read.
    """
    check_question(release, question)
    inputs, request = question.condition_inputs, _Request(release, question, device)
    for name in [name for name in inputs if name not in release.conditions]:
        log.warning("%s= is ignored: this model was trained without it", name)
    warn_of_cropping("reference", question.reference, request.size)
    image = read_image(question.reference, request.size)
    with torch.no_grad():
        reference = release.video_vae.encode(from_bytes(image[None]).to(device)).transpose(1, 2)
        batch = ChunkBatch(reference, torch.ones(1, 0, dtype=torch.bool, device=device))
        if release.hears:
            _add_heard_turn(batch, request)
        for name, condition in release.conditions.items():
            with _naming(name, inputs.get(name)):
                values = condition.from_request(inputs.get(name), request)
            if not values.values[values.mask].isfinite().all():
                raise QuestionError(f"conditions.{name}={inputs.get(name)} holds a value that is NaN or infinite")
            batch.conditions[name] = collate([values])
    return batch.to(device)


@contextmanager
def _naming(name: str, value: Any) -> Iterator[None]:
    """Names the condition in whatever its class, which may be anybody's, raises of a user's value."""
    try:
        yield
    except Exception as error:
        if user_message(error) is not None and type(error) is not ValueError:
            raise
        raise QuestionError(f"conditions.{name}={value} cannot be read: {error}") from error


def _add_heard_turn(batch: ChunkBatch, request: _Request) -> None:
    """Adds the chunks of the initiator's clip to a batch."""
    tokens = encode_heard(request.encoder, request.heard, request.device)
    batch.turn_latents = tokens.latents[None]
    batch.turn_codes = None if tokens.codes is None else tokens.codes[None]
    batch.turn_roles = torch.full(batch.turn_latents.shape[:2], INITIATOR)
    batch.turn_mask = torch.ones_like(batch.turn_roles, dtype=torch.bool)


class _Request:
    """Implements `vidchat.conditions.base.Request` for a question and a release."""

    def __init__(self, release: Release, question: Question, device: torch.device | str = "cpu") -> None:
        self.release, self.question, self.device = release, question, device
        self.has_thinker = release.thinker is not None

    @cached_property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the answer."""
        return answer_size(self.release, self.question.reference)

    @cached_property
    def encoder(self) -> ClipEncoder:
        """Encoder of clips at the size of the answer."""
        return _encoder(self.release, self.size)

    @cached_property
    def heard(self) -> Media:
        """The part of the initiator's clip that the model hears."""
        assert self.question.initiator is not None, "ensured by check_question"
        clip = _clip(self.question.initiator)
        media = read_heard(self.encoder, clip, "last")
        warn_of_cropping("initiator", clip.path, self.size)
        return media

    def text_ids(self, text: str) -> Tensor:
        try:
            ids = self.release.text_tokenizer.encode(text)
        except UnicodeError as error:
            raise QuestionError("the text is not valid UTF-8; give it as UTF-8") from error
        if len(ids) > MAX_TEXT:
            raise QuestionError(
                f"the text has {len(ids)} tokens and a model reads at most {MAX_TEXT}, about a minute of speech; "
                "shorten it, or split it over several answers"
            )
        return torch.tensor(ids, dtype=torch.long)

    def voice(self, path: Path | None) -> Tensor:
        shape, encoder = self.release.responder.code_shape, _encoder(self.release, self.release.size)
        assert shape is not None, "a model without audio has no voice condition"
        if path is None:
            return torch.zeros(0, shape.codec_frames, shape.codebooks, dtype=torch.long)
        codes = encode_heard(encoder, read_heard(encoder, _clip(path), "first"), self.device).codes
        assert codes is not None, "a responder with codes has a depth transformer"
        return codes

    def thinker_features(self) -> Tensor:
        assert self.release.thinker is not None, "ensured by check_question"
        return self.release.thinker.encode(self.heard)


def answer(
    release: Release, batch: ChunkBatch, settings: GenerationSettings, path: Path, timing: Timing | None = None
) -> Iterator[GeneratedChunk]:
    """Generates an answer and writes it to an mp4 chunk by chunk; the file appears when the last chunk is written.

    Args:
        release: The model with its tokenizers.
        batch: Batch of one question, from `read_question`.
        settings: Generation settings.
        path: The mp4 to write.
        timing: Timing that is filled in during generation.

    Yields:
        Each chunk after it is written.
    """
    clock = release.clock
    timing = timing if timing is not None else Timing()
    timing.chunk = clock.temporal_stride / clock.fps
    sample_rate = clock.sample_rate if release.responder.depth else None
    chunks = stream_answer(release.responder, release.video_vae, release.audio_codec, batch, settings, release.graphs)
    start = time.perf_counter()
    with ClipWriter(path, clock.fps, sample_rate) as writer:
        for chunk in chunks:
            timing.ready.append(time.perf_counter() - start)
            frames = to_bytes(chunk.frames[0].transpose(0, 1))
            writer.write(frames, None if chunk.waveform is None else chunk.waveform[0])
            yield chunk


def _encoder(release: Release, size: tuple[int, int]) -> ClipEncoder:
    """Returns the encoder that cuts clips to chunks as in training and encodes them."""
    codec = release.audio_codec if release.responder.depth is not None else None
    return ClipEncoder(release.video_vae, codec, release.clock.fps, size)


def _clip(source: Path | Clip) -> Clip:
    return source if isinstance(source, Clip) else Clip(source, speaker="")
