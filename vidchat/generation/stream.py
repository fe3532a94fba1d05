"""The chunk loop: the one way in which answers are generated, in training, by `infer.py` and live.

conversation = Conversation(responder, video_vae, audio_codec, batch, settings)
for chunk in conversation.answer():  # frames and audio, 160 ms at a time
    ...
conversation.hear(latents, codes)  # the next clip of the initiator
for chunk in conversation.answer():
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.generation_state import ChunkSampling, GenerationState
from vidchat.model.graphs import CapturedLoops
from vidchat.model.responder import Responder


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated.

    Attributes:
        chunks: T >= 1, how many chunks the answer has.
        window: Earlier chunks, one or more, that a chunk sees besides the condition and the reference.
        seed: From 0 to 2^64 - 1; the same seed gives the same answer.
        sampling: How each chunk is drawn; `None` is as the responder's own settings have it (`Responder.sampling`).

    Raises:
        ValueError: a value is out of its range.
    """

    chunks: int
    window: int = 64
    seed: int = 0
    sampling: ChunkSampling | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("chunks", self.chunks, 1), ("window", self.window, 1), ("seed", self.seed, 0)):
            if type(value) is not int or not least <= value < 1 << 64:
                raise ValueError(f"settings.{name} must be a whole number from {least} on, got {value!r}")


@dataclass
class GeneratedChunk:
    """One chunk of the answer.

    Attributes:
        frames: (B, 3, 4, H, W) in [-1, 1].
        waveform: (B, samples) in [-1, 1], of the same time span, or `None` without audio.
        latents: (B, C, h, w).
        codes: (B, F, K), or `None` without audio.
    """

    frames: Tensor
    waveform: Tensor | None
    latents: Tensor
    codes: Tensor | None


class VideoStream(Protocol):
    """A video tokenizer's decoder that carries its state from chunk to chunk."""

    def push(self, latents: Tensor) -> Tensor:
        """Latents (B, C, n, h, w) to their frames (B, 3, m, H, W)."""


class AudioStream(Protocol):
    """A codec's decoder that carries its state from chunk to chunk."""

    def push(self, codes: Tensor) -> Tensor:
        """Codes (B, n, K) to their samples (B, n * hop)."""


class StreamsVideo(Protocol):
    """A tokenizer from which a video stream can be had."""

    def stream(self) -> VideoStream: ...


class StreamsAudio(Protocol):
    """A codec from which an audio stream can be had."""

    def stream(self) -> AudioStream: ...


class Conversation:
    """Turn by turn with one responder: it hears, it answers, and what was said stays in its cache.

    The reference, `batch.latents[:, :1]`, is chunk 0 of every answer: it starts the video decoder and is not yielded,
    so what comes out is frames 1..4T and their audio, starting together. One backbone call per chunk, on that chunk's
    tokens only. The condition and the reference stay for ever; of all that is heard and said after them, the last
    `settings.window` chunks.

    Args:
        responder: The model, in evaluation mode.
        video_vae: Its video tokenizer.
        audio_codec: Its audio codec; `None` for a model without audio.
        batch: Conditions and references of B answers, the initiators' first clips among them.
        settings: How to generate.
        graphs: Of earlier conversations with the same responder (`Release.graphs`): capturing costs the first chunk
            time. None are taken over if not given.
    """

    def __init__(
        self,
        responder: Responder,
        video_vae: StreamsVideo,
        audio_codec: StreamsAudio | None,
        batch: ChunkBatch,
        settings: GenerationSettings,
        graphs: CapturedLoops | None = None,
    ) -> None:
        self.responder, self.video_vae, self.settings = responder, video_vae, settings
        self.sampling = settings.sampling or responder.sampling
        self.audio_codec = audio_codec if responder.depth else None
        self.batch = batch
        self.generator = torch.Generator(batch.latents.device).manual_seed(settings.seed)
        self._graphs = CapturedLoops() if graphs is None else graphs
        self._reading: GenerationState | None = None
        self._said: tuple[Tensor, Tensor | None] | None = None  # the last chunk generated, as long as it is unread

    def answer(self, chunks: int | None = None) -> Iterator[GeneratedChunk]:
        """Answer what has been heard so far, one chunk at a time; the caller may stop anywhere.

        Args:
            chunks: How many; `None` is `settings.chunks`.

        Yields:
            Each chunk as soon as it is decoded.
        """
        frames = self.video_vae.stream()
        audio = self.audio_codec.stream() if self.audio_codec else None
        # A generator must not hold the gradient mode of its caller between chunks, hence one block per chunk.
        with torch.no_grad():
            frames.push(self.batch.latents[:, :1].transpose(1, 2))
            self._graphs.check_weights(self.responder)
            self._begin()
        for _ in range(self.settings.chunks if chunks is None else chunks):
            with torch.no_grad():
                state = self._read_what_was_said()
                latents, codes = self.responder.generate_chunk(state, self.sampling, self.generator, self._graphs)
                self._said = latents, codes
                chunk = GeneratedChunk(
                    frames.push(latents.unsqueeze(2)),
                    audio.push(codes) if audio and codes is not None else None,
                    latents,
                    codes,
                )
            yield chunk

    def hear(self, latents: Tensor, codes: Tensor | None) -> None:
        """Read the initiators' next clips, or parts of them as they come in.

        Args:
            latents: (B, U, C, h, w), chunks 1..U of a clip; chunk 0, a frame without audio, is left out.
            codes: (B, U, F, K), or `None` for a model without audio.
        """
        if self._reading is None:
            raise ValueError("the first clip is part of the batch that a conversation starts from; answer it first")
        with torch.no_grad():
            self._read_what_was_said()
            for chunk in range(latents.shape[1]):
                own = None if codes is None else codes[:, chunk]
                self._reading = self.responder.append_heard_chunk(self._reading, latents[:, chunk], own)

    def _begin(self) -> None:
        if self._reading is None:
            self._reading = self.responder.prefill(self.batch, self.settings.window, self.sampling.guidance)
            return
        self._read_what_was_said()
        self._reading = self.responder.restart(self._reading, self.batch.latents[:, 0])

    def _read_what_was_said(self) -> GenerationState:
        """Where the backbone stands, once it has read the last chunk."""
        assert self._reading is not None, "begun"
        if self._said is not None:
            level = self.sampling.noise_level
            self._reading = self.responder.append_chunk(self._reading, *self._said, level, self.generator)
            self._said = None
        return self._reading


def stream_answer(
    responder: Responder,
    video_vae: StreamsVideo,
    audio_codec: StreamsAudio | None,
    batch: ChunkBatch,
    settings: GenerationSettings,
    graphs: CapturedLoops | None = None,
) -> Iterator[GeneratedChunk]:
    """Generate the answer to a batch of conditions, one chunk at a time: a conversation of one turn.

    Args:
        responder: The model, in evaluation mode.
        video_vae: Its video tokenizer.
        audio_codec: Its audio codec; `None` for a model without audio.
        batch: Conditions and references of B answers.
        settings: How to generate.
        graphs: As for `Conversation`.

    Yields:
        Each chunk as soon as it is decoded.
    """
    yield from Conversation(responder, video_vae, audio_codec, batch, settings, graphs).answer()
