"""The step loop, which generates everything: samples in training, `vidchat infer`, live talk, and from Python.

conversation = Conversation(responder, video_vae, audio_codec, batch, settings)
conversation.hear(latents, codes)  # the initiator's clip, whole or in pieces
for chunk in conversation.answer():  # video and audio, 160 ms at a time
    ...

Both are callers of `tick`, which serves full duplex as well: one step of the clock, heard and said at the same time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.model.generation_state import Chunk, ChunkSampling, GenerationState
from vidchat.model.graphs import CapturedLoops
from vidchat.model.responder import Responder
from vidchat.tokenizers.audio import AudioCodec, AudioStream
from vidchat.tokenizers.video import VideoStream, VideoTokenizer

ENDED = 0.5
"""Probability that a turn goes on, below which it has ended: turns then last as long as the median of their lengths."""


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of generation.

    Attributes:
        chunks: Number of chunks after which an answer stops, 1 or more.
        window: Number of earlier steps, 1 or more, that a step sees besides the conditions and the reference; `None`
            uses the responder's own (`Responder.window`), beyond which it was not trained.
        seed: Seed in 0 .. 2^64 - 1; the same seed gives the same answer.
        sampling: Sampling settings of the chunks; `None` uses the responder's own (`Responder.sampling`).
        ends: Whether turns end by themselves before their limit.
        undo: Number of steps that can be taken back, 0 or more.

    Raises:
        ValueError: a value is out of its range.
    """

    chunks: int
    window: int | None = None
    seed: int = 0
    sampling: ChunkSampling | None = None
    ends: bool = True
    undo: int = 0

    def __post_init__(self) -> None:
        limits = (("chunks", 1), ("window", 1), ("seed", 0), ("undo", 0))
        for name, minimum in limits:
            value = getattr(self, name)
            if name == "window" and value is None:
                continue
            if type(value) is not int or not minimum <= value < 1 << 64:
                raise ValueError(f"settings.{name} must be a whole number of at least {minimum}, got {value!r}")


@dataclass
class GeneratedChunk:
    """One chunk that the responder says.

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


class _Moment(NamedTuple):
    """What a conversation remembers after a tick.

    Attributes:
        state: State after the last step that was read.
        said: Chunk of the step that follows it, which is not read yet.
        goes_on: (B,) probability that the turn has not ended.
        random: State of the generator.
        started: Whether there has been a tick.
    """

    state: GenerationState
    said: Chunk | None
    goes_on: Tensor
    random: Tensor
    started: bool


class Conversation:
    """A conversation with one responder, step by step, without an end.

    Each step takes one backbone call on its own tokens. The conditions and the reference stay in the cache; of the
    steps after them, the last `settings.window` stay.

    Args:
        responder: The model, in evaluation mode.
        video_vae: The responder's video tokenizer.
        audio_codec: The responder's audio codec; `None` for a model without audio.
        batch: Conditions and references of B dialogues (`ChunkBatch.start`).
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
        self.generator = torch.Generator(batch.latents.device).manual_seed(settings.seed)
        self._graphs = CapturedLoops() if graphs is None else graphs
        self._streams: tuple[VideoStream, AudioStream | None] | None = None  # decoders of the turn that goes on
        self._heard: Chunk | None = None  # the last chunk given to `hear`
        with torch.no_grad():
            self._graphs.check_weights(responder)
            state = responder.start(batch, settings.window, self.sampling.guidance, settings.undo)
        goes_on = torch.ones(batch.size, device=batch.latents.device)
        self._now = _Moment(state, None, goes_on, self.generator.get_state(), started=False)
        self._past: deque[_Moment] = deque(maxlen=settings.undo)

    @property
    def step(self) -> int:
        """The step of the clock that the last tick's chunk belongs to; 0 before the first tick."""
        return self._now.state.step + self._now.started

    @property
    def in_turn(self) -> bool:
        """Whether the responder's turn goes on: its last chunk may be followed by another."""
        return self._streams is not None

    @property
    def end(self) -> Tensor | None:
        """(B,) probability that the last chunk that was said and read is its turn's last; `None` after a still."""
        return self._now.state.end

    @torch.no_grad()
    def tick(
        self, heard: Chunk | None = None, speaking: bool = True, still: Tensor | None = None
    ) -> GeneratedChunk | None:
        """Ends the step t that goes on, and begins step t+1.

        Args:
            heard: The initiator's chunk of step t. Before the first tick lies step 0, in which nothing can be heard.
            speaking: Whether the responder has a chunk at step t+1, be it that it speaks or listens visibly.
            still: (B, C, h, w) latents of the frame that a turn which begins now continues from; by default the
                reference.

        Returns:
            The responder's chunk of step t+1; `None` if it has none, or if its turn has ended.

        Raises:
            ValueError: Something is heard in step 0, or by a model that does not listen; a turn that starts at step 1
                has a still other than the reference; or a turn that was taken back is to go on.
        """
        state, said, goes_on, _, started = self._now
        begins = said is None
        if not started and heard is not None:
            raise ValueError("nothing is heard in step 0, which is the reference; tick once before the first chunk")
        if not started and still is not None:
            raise ValueError("a turn that starts at step 1 continues from the reference; give no still")
        if speaking and not begins and self._streams is None:
            raise ValueError("a turn that was taken back has ended; tick with speaking=False before the next one")
        if speaking and begins:
            still = state.reference if still is None else still
            goes_on = torch.ones_like(goes_on)
        if started:
            read = Chunk(still, still=True) if speaking and begins else said
            state = self.responder.read_step(state, read, heard, self.sampling.noise_level, self.generator)
            goes_on = goes_on if state.end is None else goes_on * (1 - state.end)
        ended = self.settings.ends and not begins and bool((goes_on < ENDED).all())
        chunk = None
        if not speaking or ended:
            self._streams = None
        else:
            if begins:
                self._open_streams(still)
            chunk = self._generate(state)
        if self.settings.undo:
            self._past.append(self._now)
        following = None if chunk is None else Chunk(chunk.latents, chunk.codes)
        random = self.generator.get_state() if self.settings.undo else self._now.random
        self._now = _Moment(state, following, goes_on, random, started=True)
        return chunk

    def take_back(self, ticks: int) -> None:
        """Undoes the last ticks, as if they had never been: what was heard and said in them is forgotten.

        An answer that is interrupted is thus remembered as far as it was played. Its turn has ended then, as the
        decoders cannot go back.

        Raises:
            ValueError: There are not as many, or `settings.undo` does not allow it.
        """
        if not 0 < ticks <= len(self._past):
            raise ValueError(f"{ticks} steps cannot be taken back, only 1 to {len(self._past)} (settings.undo)")
        before = self._now.state
        for _ in range(ticks):
            self._now = self._past.pop()
        if before.step > self._now.state.step:
            before.cache.take_back(before.step, before.step - self._now.state.step)
        self.generator.set_state(self._now.random)
        self._streams, self._heard = None, None

    def hear(self, latents: Tensor | None, codes: Tensor | None) -> None:
        """Lets time pass in which the initiator has a turn and the responder has none.

        Args:
            latents: Latents (B, U, C, h, w) of chunks 1..U of a clip, without chunk 0 (a frame without audio), or of
                the next U chunks of it; `None` if the initiator is unseen.
            codes: Codes (B, U, F, K); `None` if the initiator is inaudible.
        """
        tensor = latents if latents is not None else codes
        for chunk in range(0 if tensor is None else tensor.shape[1]):
            self.hear_chunk(
                Chunk(None if latents is None else latents[:, chunk], None if codes is None else codes[:, chunk])
            )

    def hear_chunk(self, heard: Chunk) -> None:
        """Lets a step pass in which the initiator has a chunk and the responder has none."""
        # One chunk waits for the next call: the still of an answer stands beside the last chunk heard.
        if self._heard is not None or not self._now.started or self._now.said is not None:
            self.tick(self._heard, speaking=False)
        self._heard = heard

    def wait(self, steps: int) -> None:
        """Lets steps pass in which nobody has a chunk."""
        for _ in range(steps):
            self.tick(self._heard, speaking=False)
            self._heard = None

    def answer(self, chunks: int | None = None) -> Iterator[GeneratedChunk]:
        """Generates a turn of the responder; the caller may stop after any chunk.

        Args:
            chunks: Largest number of chunks; `None` is `settings.chunks`.

        Yields:
            Each chunk as soon as it is decoded, until the turn ends.
        """
        if self._now.said is not None:  # a turn of which the caller wanted no more
            self.tick(self._heard, speaking=False)
            self._heard = None
        for _ in range(self.settings.chunks if chunks is None else chunks):
            chunk = self.tick(self._heard, speaking=True)
            self._heard = None
            if chunk is None:
                return
            yield chunk

    def _open_streams(self, still: Tensor | None) -> None:
        video, audio = self.video_vae.stream(), self.audio_codec.stream() if self.audio_codec else None
        assert still is not None, "set when a turn begins"
        video.push(still.unsqueeze(2))
        self._streams = video, audio

    def _generate(self, state: GenerationState) -> GeneratedChunk:
        """Draws and decodes the next chunk."""
        assert self._streams is not None, "opened when the turn began"
        video, audio = self._streams
        latents, codes, _ = self.responder.generate_chunk(state, self.sampling, self.generator, self._graphs)
        assert latents is not None, "a said chunk has video"
        waveform = audio.push(codes) if audio is not None and codes is not None else None
        return GeneratedChunk(video.push(latents.unsqueeze(2)), waveform, latents, codes)
