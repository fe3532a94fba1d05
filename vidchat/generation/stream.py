"""The chunk loop, which generates all answers: samples in training, `vidchat infer`, and from Python.

conversation = Conversation(responder, video_vae, audio_codec, batch, settings)
for chunk in conversation.answer():  # video and audio, 160 ms at a time
    ...
conversation.hear(latents, codes)  # the initiator's next clip
for chunk in conversation.answer():
    ...
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.generation_state import ChunkSampling, GenerationState
from vidchat.model.graphs import CapturedLoops
from vidchat.model.responder import Responder
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.video import VideoTokenizer


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of the generation of an answer.

    Attributes:
        chunks: T >= 1, the number of chunks of the answer.
        window: Number of earlier chunks, 1 or more, that a chunk sees besides the condition and the reference.
        seed: Seed in 0 .. 2^64 - 1; the same seed gives the same answer.
        sampling: Sampling settings of the chunks; `None` uses the responder's own (`Responder.sampling`).

    Raises:
        ValueError: a value is out of its range.
    """

    chunks: int
    window: int = 64
    seed: int = 0
    sampling: ChunkSampling | None = None

    def __post_init__(self) -> None:
        for name, value, minimum in (("chunks", self.chunks, 1), ("window", self.window, 1), ("seed", self.seed, 0)):
            if type(value) is not int or not minimum <= value < 1 << 64:
                raise ValueError(f"settings.{name} must be a whole number of at least {minimum}, got {value!r}")


@dataclass
class GeneratedChunk:
    """One chunk of the answer.

    Attributes:
        frames: Frames (B, 3, 4, H, W) in [-1, 1].
        waveform: Waveform (B, samples) in [-1, 1] of the same time span, or `None` without audio.
        latents: Latents (B, C, h, w).
        codes: Codes (B, F, K), or `None` without audio.
    """

    frames: Tensor
    waveform: Tensor | None
    latents: Tensor
    codes: Tensor | None


class Conversation:
    """A conversation with one responder, turn by turn; earlier turns stay in the cache.

    The reference, `batch.latents[:, :1]`, is chunk 0 of every answer: it starts the video decoder and is not yielded,
    so an answer is frames 1..4T and their audio, starting together. Each chunk takes one backbone call on its own
    tokens. The condition and the reference stay in the cache; of the heard and said chunks after them, the last
    `settings.window` stay.

    Args:
        responder: The model, in evaluation mode.
        video_vae: The responder's video tokenizer.
        audio_codec: The responder's audio codec; `None` for a model without audio.
        batch: Conditions and references of B answers, with the initiators' first clips.
        settings: Generation settings.
        graphs: CUDA graphs of earlier conversations with the same responder (`Release.graphs`), because capturing
            delays the first chunk; `None` captures new ones.
    """

    def __init__(
        self,
        responder: Responder,
        video_vae: VideoTokenizer,
        audio_codec: AudioCodec | None,
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
        self._state: GenerationState | None = None
        self._pending: tuple[Tensor, Tensor | None] | None = None  # last generated chunk, until it is appended

    def answer(self, chunks: int | None = None) -> Iterator[GeneratedChunk]:
        """Generates an answer to what was heard so far, one chunk at a time; the caller may stop after any chunk.

        Args:
            chunks: Number of chunks; `None` is `settings.chunks`.

        Yields:
            Each chunk as soon as it is decoded.
        """
        video_stream = self.video_vae.stream()
        audio_stream = self.audio_codec.stream() if self.audio_codec else None
        # One `no_grad` block per chunk, so that the caller's gradient mode is unchanged between chunks.
        with torch.no_grad():
            video_stream.push(self.batch.latents[:, :1].transpose(1, 2))
            self._graphs.check_weights(self.responder)
            self._start_turn()
        for _ in range(self.settings.chunks if chunks is None else chunks):
            with torch.no_grad():
                state = self._append_pending()
                latents, codes = self.responder.generate_chunk(state, self.sampling, self.generator, self._graphs)
                self._pending = latents, codes
                chunk = GeneratedChunk(
                    video_stream.push(latents.unsqueeze(2)),
                    audio_stream.push(codes) if audio_stream and codes is not None else None,
                    latents,
                    codes,
                )
            yield chunk

    def hear(self, latents: Tensor, codes: Tensor | None) -> None:
        """Appends the initiators' next clips, whole or in pieces as they arrive.

        Args:
            latents: Latents (B, U, C, h, w) of chunks 1..U of a clip, without chunk 0 (a frame without audio).
            codes: Codes (B, U, F, K), or `None` for a model without audio.

        Raises:
            ValueError: no answer has been generated yet.
        """
        if self._state is None:
            raise ValueError("the first clip is part of the batch that a conversation starts from; answer it first")
        with torch.no_grad():
            self._append_pending()
            for chunk in range(latents.shape[1]):
                chunk_codes = None if codes is None else codes[:, chunk]
                self._state = self.responder.append_heard_chunk(self._state, latents[:, chunk], chunk_codes)

    def _start_turn(self) -> None:
        if self._state is None:
            self._state = self.responder.prefill(self.batch, self.settings.window, self.sampling.guidance)
            return
        self._append_pending()
        self._state = self.responder.restart(self._state, self.batch.latents[:, 0])

    def _append_pending(self) -> GenerationState:
        """Appends the last generated chunk to the backbone's state, if it is pending; returns the state."""
        assert self._state is not None, "set by _start_turn"
        if self._pending is not None:
            level = self.sampling.noise_level
            self._state = self.responder.append_chunk(self._state, *self._pending, level, self.generator)
            self._pending = None
        return self._state


def stream_answer(
    responder: Responder,
    video_vae: VideoTokenizer,
    audio_codec: AudioCodec | None,
    batch: ChunkBatch,
    settings: GenerationSettings,
    graphs: CapturedLoops | None = None,
) -> Iterator[GeneratedChunk]:
    """Generates the answer to a batch of conditions, one chunk at a time: a conversation of one turn.

    Args:
        responder: The model, in evaluation mode.
        video_vae: The responder's video tokenizer.
        audio_codec: The responder's audio codec; `None` for a model without audio.
        batch: Conditions and references of B answers.
        settings: Generation settings.
        graphs: See `Conversation`.

    Yields:
        Each chunk as soon as it is decoded.
    """
    yield from Conversation(responder, video_vae, audio_codec, batch, settings, graphs).answer()
