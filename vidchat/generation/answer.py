"""Generates a responder's clip from files: the initiator's clips and an image of the responder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch, collate
from vidchat.conditions.base import QuestionError
from vidchat.conditions.text import MAX_TEXT
from vidchat.data.media.pixels import from_bytes
from vidchat.data.media.read import ClipWriter, Media, MediaError, read_image
from vidchat.data.tokens.encoder import ClipEncoder, Part, Segment
from vidchat.dialogue import Clip
from vidchat.generation.conversation import Conversation, GeneratedChunk, GenerationSettings
from vidchat.generation.framing import answer_size, warn_of_cropping
from vidchat.generation.heard import HeardStream, hear_clip
from vidchat.generation.talk import Clips, Screen, Step, full_duplex, take_turns
from vidchat.generation.timing import Timing, timed
from vidchat.release import Release
from vidchat.runtime.errors import user_message

log = logging.getLogger(__name__)
MAX_SECONDS = 30  # of a voice or of what a thinker reads, which stay in the cache


@dataclass(frozen=True)
class Question:
    """The inputs of an answer, or of the answers of one conversation.

    Attributes:
        reference: An image of the responder, or a video whose first frame is used.
        initiator: The initiator's clip, for a model that hears (`dyadic`): a file, or a span of a file as a `Clip`.
            Several are the initiator's turns in one conversation; each is answered before the next is heard.
        text: The text that the responder says, for a model that takes text (`conditioned`); at most `MAX_TEXT` tokens.
        voice: A clip of the responder's voice, for a model that takes one.
        scores: Quality scores to aim for, by name, in standard deviations from the mean of the training data.
        conditions: Inputs of further conditions by name, for a model that has conditions of other packages.
        listen: Whether the responder is generated at every step, so that it is seen listening (full duplex).
    """

    reference: Path
    initiator: Path | Clip | Sequence[Path | Clip] | None = None
    text: str | None = None
    voice: Path | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    listen: bool = False

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The initiator's clips."""
        if self.initiator is None:
            return ()
        sources = [self.initiator] if isinstance(self.initiator, str | Path | Clip) else self.initiator
        return tuple(_clip(source) for source in sources)

    @property
    def condition_inputs(self) -> dict[str, Any]:
        """The inputs of conditions that are not `None`, by the name of the condition."""
        inputs = {"text": self.text, "voice": self.voice, "scores": self.scores or None, **self.conditions}
        return {name: value for name, value in inputs.items() if value is not None}


def check_question(release: Release, question: Question) -> None:
    """Checks, before any other work, that a question has the inputs that the model is conditioned on.

    Raises:
        QuestionError: an input is missing or unknown.
        MediaError: a file does not exist.
    """
    inputs, request = question.condition_inputs, _Request(release, question)
    if not question.clips and any("question" in condition.needs for condition in release.conditions.values()):
        raise QuestionError("this model answers an initiator's clip: give initiator=CLIP.mp4")
    if not release.hears and (question.listen or len(question.clips) > 1):
        raise QuestionError(
            "this model does not hear, so it can neither listen nor hold a conversation: give one clip as initiator="
            "and no listen=true, or use a model that was trained with the initiator's clips"
        )
    for name, condition in release.conditions.items():
        with _naming(name, inputs.get(name)):
            condition.check(inputs.get(name), request)
    unknown = [name for name in ("scores", *question.conditions) if name in inputs and name not in release.conditions]
    if unknown:
        raise QuestionError(
            f"this model was trained without {unknown[0]}; its conditions are {', '.join(release.conditions) or 'none'}"
        )
    for path in (question.reference, *(clip.path for clip in question.clips), question.voice):
        if path is not None and not os.path.isfile(path):
            raise MediaError(f"{path} does not exist; give the path of a media file")


def read_question(release: Release, question: Question, device: torch.device | str = "cpu") -> ChunkBatch:
    """Reads and encodes the reference and the conditions of an answer as a batch of size 1.

    What is heard is no part of it, see `answer`.

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
    for clip in question.clips:
        warn_of_cropping("initiator", clip.path, request.size)
    image = read_image(question.reference, request.size)
    with torch.no_grad():
        batch = ChunkBatch.start(release.video_vae.encode(from_bytes(image[None]).to(device))[:, :, 0])
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


class _Request:
    """Implements `vidchat.conditions.base.Request` for a question and a release."""

    def __init__(self, release: Release, question: Question, device: torch.device | str = "cpu") -> None:
        self.release, self.question, self.device = release, question, device
        self.has_thinker = release.thinker is not None

    @cached_property
    def size(self) -> tuple[int, int]:
        """The (height, width) of the answer."""
        return answer_size(self.release, self.question.reference)

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
        shape = self.release.responder.code_shape
        assert shape is not None, "a model without audio has no voice condition"
        if path is None:
            return torch.zeros(0, shape.codec_frames, shape.codebooks, dtype=torch.long)
        encoder, media = self._read(_clip(path), "first")
        return encoder.encode_tracks([media], ["codes"], self.device)[0]["codes"]

    def thinker_features(self) -> Tensor:
        thinker = self.release.thinker
        assert thinker is not None, "ensured by check_question"
        if self.question.listen:  # features of the whole clip would know the future
            return torch.zeros(0, thinker.width)
        return thinker.encode(self._read(self.question.clips[0], "last")[1])

    def _read(self, clip: Clip, part: Part) -> tuple[ClipEncoder, Media]:
        """Reads the first or last `MAX_SECONDS` of a clip, cut to chunks as in training; returns its encoder, too."""
        codec = self.release.audio_codec if self.release.responder.depth is not None else None
        encoder = ClipEncoder(self.release.video_vae, codec, self.release.clock.fps, self.size)
        return encoder, encoder.read(Segment(clip, part, int(MAX_SECONDS * encoder.clock.chunks_per_second)))[0]


def talk(
    release: Release, question: Question, settings: GenerationSettings, device: torch.device | str = "cpu"
) -> Iterator[Step]:
    """Reads a question and returns the steps of the conversation, which are generated as they are asked for.

    Args:
        release: The model with its tokenizers, on `device`.
        question: The inputs.
        settings: Generation settings; `chunks` is the largest number of chunks of each answer.
        device: Device of the model.

    Raises:
        QuestionError, MediaError: see `read_question`.
    """
    batch = read_question(release, question, device)
    if release.thinker is not None:
        release.thinker.unload()  # its features are computed; generation needs the memory
    clock, size = release.clock, answer_size(release, question.reference)
    codec = release.audio_codec if release.responder.depth is not None else None
    clips = [  # each is read while it is heard
        hear_clip(
            clip,
            HeardStream(release.video_vae, codec, clock, device),
            clock,
            size,
            audio=codec is not None,
            waits=question.listen,
        )
        for clip in (question.clips if release.hears else ())
    ]
    return _steps(release, batch, clips, settings, question.listen)


def _steps(
    release: Release, batch: ChunkBatch, clips: Clips, settings: GenerationSettings, listen: bool
) -> Iterator[Step]:
    parts = (release.responder, release.video_vae, release.audio_codec)
    own = replace(settings, ends=settings.ends and not listen)
    conversation = Conversation(*parts, batch, own, release.graphs)
    yield from full_duplex(conversation, clips, settings.ends) if listen else take_turns(conversation, clips)


def answer(
    release: Release,
    question: Question,
    settings: GenerationSettings,
    path: Path,
    timing: Timing | None = None,
    film: Path | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[GeneratedChunk]:
    """Generates answers and writes them to an mp4 chunk by chunk; the file appears when the last chunk is written.

    To one clip, it holds the answer alone. To several, or with `question.listen`, it holds the responder over the whole
    conversation: while the initiator speaks, the responder listens, or else the last frame stays and it is silent.

    Args:
        release, question, settings, device: see `talk`.
        path: The mp4 to write.
        timing: Timing that is filled in during generation.
        film: A second mp4 to write, which shows both people side by side, with both voices.

    Yields:
        Each chunk of the responder after it is written.

    Raises:
        QuestionError, MediaError: see `read_question`.
    """
    if film is not None and not (release.hears and question.clips):
        raise QuestionError("a film shows both people: it needs initiator= and a model that hears")
    clock, timing = release.clock, timing if timing is not None else Timing()
    timing.chunk = clock.temporal_stride / clock.fps
    steps = timed(talk(release, question, settings, device), timing)
    sample_rate = clock.sample_rate if release.responder.depth else None
    image = read_image(question.reference, answer_size(release, question.reference))
    responder, initiator = Screen(clock, image), Screen(clock)
    whole = question.listen or len(question.clips) > 1
    with ExitStack() as files:
        own = files.enter_context(ClipWriter(path, clock.fps, sample_rate))
        both = None if film is None else files.enter_context(ClipWriter(film, clock.fps, sample_rate))
        for heard, said in steps:
            frames, waveform = responder.show_said(said)
            if whole or said is not None:
                own.write(frames, waveform if sample_rate else None)
            if both is not None:
                other = initiator.show(heard.frames, heard.waveform) if heard else initiator.show(None, None)
                mixed = (waveform + other[1]).clamp(-1, 1)
                both.write(torch.cat([other[0], frames], dim=3), mixed if sample_rate else None)
            if said is not None:
                yield said


def _clip(source: str | Path | Clip) -> Clip:
    return source if isinstance(source, Clip) else Clip(Path(source), speaker="")
