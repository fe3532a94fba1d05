"""Files in, file out: an initiator's clip and a picture of the responder become the responder's clip."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import MOST_TEXT, ChunkBatch
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import ClipWriter, Media, MediaError, read_picture
from vidchat.data.tokens.encoder import ClipEncoder, Part
from vidchat.dialogue import Clip
from vidchat.generation.framing import frame_of, warn_of_cropping
from vidchat.generation.listening import encode_heard, read_heard
from vidchat.generation.stream import GeneratedChunk, GenerationSettings, stream_answer
from vidchat.model.conditions import ConditionSwitches
from vidchat.model.depth import is_number
from vidchat.release import Release

log = logging.getLogger(__name__)
MOST_SCORE = 100  # standard deviations; far beyond any score in training


@dataclass(frozen=True)
class Question:
    """What is to be answered, and by whom.

    Attributes:
        reference: A picture of the responder, or a video whose first picture is taken.
        initiator: What the initiator says, for a model that listens (`dyadic`): a file, or a `Clip`, a span of one. Of
            more than 30 s, the last 30 are heard.
        text: What the responder shall say, for a model that is told (`conditioned`); at most `MOST_TEXT` tokens.
        voice: A clip of the responder's voice, for a model that takes one.
        scores: Quality scores to ask for, in standard deviations from the training data's mean, by name.
    """

    reference: Path
    initiator: Path | Clip | None = None
    text: str | None = None
    voice: Path | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


class QuestionError(ValueError):
    """A question that this model cannot take."""


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
    """Refuse, before any work, a question that lacks what the model is conditioned on.

    Raises:
        QuestionError: names what is missing or unknown.
    """
    switches, names = release.responder.conditions.switches, list(release.config["condition"]["scores"])
    if (switches.turns or switches.features) and question.initiator is None:
        raise QuestionError("this model answers an initiator's clip: give initiator=CLIP.mp4")
    if switches.text:
        _text_ids(release, question)
    if switches.features and release.thinker is None:
        raise QuestionError(
            "this model needs a thinker's features, and its release names no thinker; give features as tensors "
            "(ChunkBatch.features), or train it with thinker=..."
        )
    unknown = set(question.scores) - set(names)
    if unknown:
        raise QuestionError(f"this model knows the scores {names or 'none'}, not {', '.join(sorted(unknown))}")
    for name, value in question.scores.items():
        if not is_number(value, -MOST_SCORE, MOST_SCORE):
            raise QuestionError(
                f"scores.{name}={value}: give a number from -{MOST_SCORE} to {MOST_SCORE}, in standard deviations"
            )
    for source in (question.reference, question.initiator, question.voice):
        if source is not None and not os.path.isfile(_clip(source).path):
            raise MediaError(f"{_clip(source).path} does not exist; give the path of a media file")


def read_question(release: Release, question: Question, device: torch.device | str = "cpu") -> ChunkBatch:
    """Decode and encode everything an answer starts from, as a batch of one.

    Args:
        release: The model with its tokenizers, on `device`.
        question: What to answer.
        device: Where to put the batch.

    Raises:
        QuestionError: it lacks what the model needs.
        MediaError: a file cannot be read.
    """
    check_question(release, question)
    switches = release.responder.conditions.switches
    _warn_of_unread(question, switches)
    frame = frame_of(release, question.reference)
    warn_of_cropping("reference", question.reference, frame)
    picture = read_picture(question.reference, frame)
    with torch.no_grad():
        reference = release.video_vae.encode(from_bytes(picture[None]).to(device)).transpose(1, 2)
        batch = ChunkBatch(reference, torch.ones(1, 0, dtype=torch.bool, device=device))
        span = _read(release, question.initiator, "last", frame) if switches.turns or switches.features else None
        if span is not None and question.initiator is not None:
            warn_of_cropping("initiator", _clip(question.initiator).path, frame)
        if switches.turns and span is not None:
            tokens = encode_heard(_encoder(release, frame), span, device)
            latents = tokens.latents[None].to(device)
            batch.turn_latents = latents
            batch.turn_codes = None if tokens.codes is None else tokens.codes[None].to(device)
            batch.turn_roles = torch.zeros(latents.shape[:2], dtype=torch.long, device=device)
            batch.turn_mask = torch.ones_like(batch.turn_roles, dtype=torch.bool)
        if switches.features and span is not None and release.thinker is not None:
            batch.features = release.thinker.encode(span)[None].to(device)
            batch.feature_mask = torch.ones(batch.features.shape[:2], dtype=torch.bool, device=device)
        if switches.voice:
            batch.voice_codes, batch.voice_mask = _voice(release, question.voice, device)
    if switches.text:
        batch.text_ids = torch.tensor([_text_ids(release, question)], device=device)
        batch.text_mask = torch.ones_like(batch.text_ids, dtype=torch.bool)
    if switches.scores:
        names = release.config["condition"]["scores"]
        batch.scores = torch.tensor([[question.scores.get(name, 0.0) for name in names]], device=device)
        batch.score_mask = torch.tensor([[name in question.scores for name in names]], device=device)
    return batch


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
            pictures = to_bytes(chunk.pictures[0].transpose(0, 1))
            writer.write(pictures, None if chunk.waveform is None else chunk.waveform[0])
            yield chunk


def _warn_of_unread(question: Question, switches: ConditionSwitches) -> None:
    given = {"text": (question.text, switches.text), "voice": (question.voice, switches.voice)}
    for name, (value, read) in given.items():
        if value is not None and not read:
            log.warning("%s= is not read: this model was trained without it", name)


def _text_ids(release: Release, question: Question) -> list[int]:
    """What a model that is told what to say is told; raises `QuestionError` if that is nothing, or too much."""
    if not question.text:
        raise QuestionError('this model is told what to say: give text="..."')
    try:
        ids = release.text_tokenizer.encode(question.text)
    except UnicodeError as error:
        raise QuestionError("the text holds bytes that are no characters; give it as UTF-8") from error
    if len(ids) > MOST_TEXT:
        raise QuestionError(
            f"the text is {len(ids)} tokens long and a model reads at most {MOST_TEXT}, about a minute of speech; "
            "shorten it, or let it be said in several answers"
        )
    return ids


def _encoder(release: Release, frame: tuple[int, int]) -> ClipEncoder:
    """What cuts clips to chunks as training cuts them, and encodes them."""
    codec = release.audio_codec if release.responder.depth is not None else None
    return ClipEncoder(release.video_vae, codec, release.clock.fps, frame)


def _clip(source: Path | Clip) -> Clip:
    return source if isinstance(source, Clip) else Clip(source, speaker="")


def _read(release: Release, source: Path | Clip | None, part: Part, frame: tuple[int, int]) -> Media | None:
    """What is heard of a file or a span of one; `None` where there is none."""
    if source is None:
        return None
    return read_heard(_encoder(release, frame), _clip(source), part)


def _voice(release: Release, path: Path | None, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Codes (1, V, F, K) of the responder's voice; without a clip, one chunk that is masked."""
    shape = release.responder.code_shape
    span = _read(release, path, "first", release.size) if shape else None
    if span is None:
        frames, books = (shape.frames, shape.codebooks) if shape else (0, 0)
        nothing = torch.zeros(1, 1, frames, books, dtype=torch.long, device=device)
        return nothing, torch.zeros(1, 1, dtype=torch.bool, device=device)
    codes = encode_heard(_encoder(release, release.size), span, device).codes
    assert codes is not None, "a responder with codes has a depth transformer"
    return codes[None].to(device), torch.ones(1, len(codes), dtype=torch.bool, device=device)
