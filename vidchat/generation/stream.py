"""The chunk loop: the one way in which answers are generated, in training, by `infer.py` and live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.responder import ChunkSampling, Responder


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated.

    Attributes:
        chunks: T, how many chunks the answer has.
        window: Earlier chunks that a chunk sees, besides the condition and the reference.
        seed: The same seed gives the same answer.
        sampling: How each chunk is drawn.
    """

    chunks: int
    window: int = 64
    seed: int = 0
    sampling: ChunkSampling = field(default_factory=ChunkSampling)


@dataclass
class GeneratedChunk:
    """One chunk of the answer.

    Attributes:
        pictures: (B, 3, 4, H, W) in [-1, 1].
        waveform: (B, samples) in [-1, 1], of the same time span, or `None` without sound.
        latents: (B, C, h, w).
        codes: (B, F, K), or `None` without sound.
    """

    pictures: Tensor
    waveform: Tensor | None
    latents: Tensor
    codes: Tensor | None


class VideoStream(Protocol):
    """A video tokenizer's decoder that carries its state from chunk to chunk."""

    def push(self, latents: Tensor) -> Tensor:
        """Latents (B, C, n, h, w) to their pictures (B, 3, m, H, W)."""


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


def stream_answer(
    responder: Responder,
    video_vae: StreamsVideo,
    audio_codec: StreamsAudio | None,
    batch: ChunkBatch,
    settings: GenerationSettings,
) -> Iterator[GeneratedChunk]:
    """Generate the answer to a batch of conditions, one chunk at a time.

    The reference, `batch.latents[:, :1]`, is chunk 0: it starts the video decoder and is not yielded, so what comes out
    is pictures 1..4T and their sound, starting together. One backbone call per chunk, on that chunk's tokens only.

    Args:
        responder: The model, in evaluation mode.
        video_vae: Its video tokenizer.
        audio_codec: Its audio codec; `None` for a model without sound.
        batch: Conditions and references of B answers.
        settings: How to generate.

    Yields:
        Each chunk as soon as it is decoded.
    """
    sampling = settings.sampling
    generator = torch.Generator(batch.latents.device).manual_seed(settings.seed)
    pictures = video_vae.stream()
    sound = audio_codec.stream() if audio_codec and responder.depth else None
    pictures.push(batch.latents[:, :1].transpose(1, 2))
    with torch.no_grad():
        reading = responder.begin(batch, settings.window, sampling.guidance)
    for remaining in reversed(range(settings.chunks)):
        # A generator must not hold the gradient mode of its caller between chunks, hence one block per chunk.
        with torch.no_grad():
            latents, codes = responder.write_chunk(reading.hidden, reading.grid, sampling, generator)
            chunk = GeneratedChunk(
                pictures.push(latents.unsqueeze(2)),
                sound.push(codes) if sound and codes is not None else None,
                latents,
                codes,
            )
        yield chunk
        if remaining:
            with torch.no_grad():
                reading = responder.read_chunk(reading, latents, codes, sampling.noise_level, generator)
