"""Files in, file out: an initiator's clip and a image of the responder become the responder's clip."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
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
from vidchat.generation.framing import frame_of, warn_of_cropping
from vidchat.generation.heard import encode_heard, read_heard
from vidchat.generation.stream import GeneratedChunk, GenerationSettings, stream_answer
from vidchat.release import Release

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is to be answered, and by whom.

    Attributes:
        reference: A image of the responder, or a video whose first frame is taken.
        initiator: What the initiator says, for a model that listens (`dyadic`): a file, or a `Clip`, a span of one. Of
            more than 30 s, the last 30 are heard.
        text: What the responder shall say, for a model that is told (`conditioned`); at most `MAX_TEXT` tokens.
        voice: A clip of the responder's voice, for a model that takes one.
        scores: Quality scores to ask for, in standard deviations from the training data's mean, by name.
        conditions: What further conditions are given, by name, for a model that has conditions of other packages.
    """

    reference: Path
    initiator: Path | Clip | None = None
    text: str | None = None
    voice: Path | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Any]:
        """What is given by a condition's name, of those that are."""
        named = {"text": self.text, "voice": self.voice, "scores": self.scores or None, **self.conditions}
        return {name: value for name, value in named.items() if value is not None}


class PairsError(ValueError):
    """Pairs of a bench that were left without an answer, by their ids."""


@dataclass
class Timing:
    """How fast an answer came.

    Attributes:
        ready: When each chunk was decoded, in seconds from the encoded condition on.
        chunk: Seconds that a chunk plays.
    """

    ready: list[float] = field(default_factory=list)
    chunk: float = 0.0

    @property
    def first_chunk(self) -> float:
        """Seconds until there was something to play."""
        return self.ready[0] if self.ready else 0.0

    @property
    def whole(self) -> float:
        """Seconds for all chunks."""
        return self.ready[-1] if self.ready else 0.0

    @property
    def duration(self) -> float:
        """Seconds of the answer itself."""
        return self.chunk * len(self.ready)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of answer; below 1 is faster than real time."""
        return self.whole / max(self.duration, 1e-9)

    def log(self) -> dict[str, Any]:
        """The generator's log of docs/reference/bench.md, as plain JSON."""
        chunks = [{"ready_s": round(ready, 4), "media_s": self.chunk} for ready in self.ready]
        return {
            "chunks": chunks,
            "first_chunk_s": round(self.first_chunk, 4),
            "real_time_factor": round(self.real_time_factor, 4),
        }


def check_question(release: Release, question: Question) -> None:
    """Refuses, before any work, a question that lacks what the model is conditioned on.

    Raises:
        QuestionError: names what is missing or unknown.
        MediaError: a file does not exist.
    """
    given, request = question.given, _Request(release, question)
    asks = release.hears or any("question" in condition.needs for condition in release.conditions.values())
    if asks and question.initiator is None:
        raise QuestionError("this model answers an initiator's clip: give initiator=CLIP.mp4")
    for name, condition in release.conditions.items():
        condition.check(given.get(name), request)
    unread = [name for name in ("scores", *question.conditions) if name in given and name not in release.conditions]
    if unread:
        raise QuestionError(
            f"this model was trained without {unread[0]}; its conditions are {', '.join(release.conditions) or 'none'}"
        )
    for source in (question.reference, question.initiator, question.voice):
        if source is not None and not os.path.isfile(_clip(source).path):
            raise MediaError(f"{_clip(source).path} does not exist; give the path of a media file")


def read_question(release: Release, question: Question, device: torch.device | str = "cpu") -> ChunkBatch:
    """Decodes and encodes everything an answer starts from, as a batch of one.

    Args:
        release: The model with its tokenizers, on `device`.
        question: What to answer.
        device: Where to put the batch.

    Raises:
        QuestionError: it lacks what the model needs.
        MediaError: a file cannot be read.
    """
    check_question(release, question)
    given, request = question.given, _Request(release, question, device)
    for name in [name for name in given if name not in release.conditions]:
        log.warning("%s= is not read: this model was trained without it", name)
    warn_of_cropping("reference", question.reference, request.frame)
    frame = read_image(question.reference, request.frame)
    with torch.no_grad():
        reference = release.video_vae.encode(from_bytes(frame[None]).to(device)).transpose(1, 2)
        batch = ChunkBatch(reference, torch.ones(1, 0, dtype=torch.bool, device=device))
        if release.hears:
            _hear(batch, request)
        for name, condition in release.conditions.items():
            batch.conditions[name] = collate([condition.from_request(given.get(name), request)])
    return batch.to(device)


def _hear(batch: ChunkBatch, request: _Request) -> None:
    """Puts the chunks of the initiator's clip into a batch."""
    tokens = encode_heard(request.encoder, request.heard, request.device)
    batch.turn_latents = tokens.latents[None]
    batch.turn_codes = None if tokens.codes is None else tokens.codes[None]
    batch.turn_roles = torch.full(batch.turn_latents.shape[:2], INITIATOR)
    batch.turn_mask = torch.ones_like(batch.turn_roles, dtype=torch.bool)


class _Request:
    """A question as a release's conditions see it: see `vidchat.conditions.base.Request`."""

    def __init__(self, release: Release, question: Question, device: torch.device | str = "cpu") -> None:
        self.release, self.question, self.device = release, question, device
        self.has_thinker = release.thinker is not None

    @cached_property
    def frame(self) -> tuple[int, int]:
        """(height, width) of the answer."""
        return frame_of(self.release, self.question.reference)

    @cached_property
    def encoder(self) -> ClipEncoder:
        """What encodes clips of the answer's size."""
        return _encoder(self.release, self.frame)

    @cached_property
    def heard(self) -> Media:
        """What is heard of the initiator's clip."""
        assert self.question.initiator is not None, "checked"
        clip = _clip(self.question.initiator)
        media = read_heard(self.encoder, clip, "last")
        warn_of_cropping("initiator", clip.path, self.frame)
        return media

    def text_ids(self, text: str) -> Tensor:
        try:
            ids = self.release.text_tokenizer.encode(text)
        except UnicodeError as error:
            raise QuestionError("the text holds bytes that are no characters; give it as UTF-8") from error
        if len(ids) > MAX_TEXT:
            raise QuestionError(
                f"the text is {len(ids)} tokens long and a model reads at most {MAX_TEXT}, about a minute of speech; "
                "shorten it, or let it be said in several answers"
            )
        return torch.tensor(ids, dtype=torch.long)

    def voice(self, path: Path | None) -> Tensor:
        shape, encoder = self.release.responder.code_shape, _encoder(self.release, self.release.size)
        assert shape is not None, "without audio no model reads a voice"
        if path is None:
            return torch.zeros(0, shape.codec_frames, shape.codebooks, dtype=torch.long)
        codes = encode_heard(encoder, read_heard(encoder, _clip(path), "first"), self.device).codes
        assert codes is not None, "a responder with codes has a depth transformer"
        return codes

    def thinker_features(self) -> Tensor:
        assert self.release.thinker is not None, "checked"
        return self.release.thinker.encode(self.heard)


def answer(
    release: Release, batch: ChunkBatch, settings: GenerationSettings, path: Path, timing: Timing | None = None
) -> Iterator[GeneratedChunk]:
    """Write the answer to an mp4 while it is generated, chunk by chunk; the file appears when the last is written.

    Args:
        release: The model with its tokenizers.
        batch: Of one question, from `read_question`.
        settings: How to generate.
        path: The mp4.
        timing: Filled in on the way.

    Yields:
        Each chunk, after it went to the file.
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


def _encoder(release: Release, frame: tuple[int, int]) -> ClipEncoder:
    """What cuts clips to chunks as training cuts them, and encodes them."""
    codec = release.audio_codec if release.responder.depth is not None else None
    return ClipEncoder(release.video_vae, codec, release.clock.fps, frame)


def _clip(source: Path | Clip) -> Clip:
    return source if isinstance(source, Clip) else Clip(source, speaker="")
