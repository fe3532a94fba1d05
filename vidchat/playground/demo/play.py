"""Who takes the responder's part in recorded encounters: the recorded person, its round trip, or a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import Media, read_clip
from vidchat.dialogue import Clip, Dialogue
from vidchat.generation.conversation import Conversation, GeneratedChunk, GenerationSettings
from vidchat.generation.heard import Heard, HeardStream, hear_clip
from vidchat.generation.talk import full_duplex
from vidchat.playground.demo.conversation import Asked, questions
from vidchat.release import Release


class Responder(Protocol):
    """Someone who takes the responder's part."""

    def answer(self, dialogue: Dialogue) -> Iterator[tuple[Asked, Media]]:
        """Yields the questions of an encounter with the answers, from their frame 1 on."""
        ...

    def listen(self, dialogue: Dialogue) -> Tensor:
        """Returns the frames (n, 3, H, W) uint8 of the listener in a listening dialogue, from frame 0 on."""
        ...

    def go_on(self, dialogue: Dialogue, seconds: int) -> Tensor:
        """Returns the frames (n, 3, H, W) uint8 of an encounter's first answer, going on for some seconds."""
        ...


def read_frame_0(release: Release, clip: Clip) -> Tensor:
    """Reads the reference (3, H, W) uint8 of a clip."""
    return _read(release, clip, 1).frames[0]


def read_from_frame_1(release: Release, clip: Clip) -> Media:
    """Reads a clip's whole chunks as they would be generated: without frame 0 and its audio."""
    clock, media = release.clock, _read(release, clip)
    chunks = clock.chunks(len(media.frames))
    waveform = media.waveform[clock.sample_rate // clock.fps :][: clock.samples(chunks)]
    return replace(media, frames=media.frames[1 : clock.frames(chunks)], waveform=waveform)


@torch.no_grad()
def round_trip(release: Release, clip: Clip) -> Media:
    """Passes a clip's whole chunks through the tokenizers and back, which is the most that a model can reach."""
    media = read_from_frame_1(release, clip)
    frames = torch.cat([read_frame_0(release, clip)[None], media.frames])
    decoded = release.video_vae.decode(release.video_vae.encode(from_bytes(frames)))[0, :, 1:]
    waveform = release.audio_codec.decode(release.audio_codec.encode(media.waveform[None]))[0]
    return replace(media, frames=to_bytes(decoded.transpose(0, 1)), waveform=waveform.clamp(-1, 1))


@dataclass(frozen=True)
class Recorded:
    """The recorded person.

    Attributes:
        release: A release, for its clock and its tokenizers.
        coded: Whether its clips pass through the tokenizers and back.
    """

    release: Release
    coded: bool = False

    def answer(self, dialogue: Dialogue) -> Iterator[tuple[Asked, Media]]:
        """Yields the answers that are not interrupted."""
        for asked in questions(dialogue):
            if not asked.interrupted:
                yield asked, self._read(dialogue.turns[asked.turn].clip)

    def listen(self, dialogue: Dialogue) -> Tensor:
        return torch.cat([read_frame_0(self.release, dialogue.answer)[None], self._read(dialogue.answer).frames])

    def go_on(self, dialogue: Dialogue, seconds: int) -> Tensor:
        clip = dialogue.turns[1].clip
        return self._read(replace(clip, end=clip.start + seconds + 1 / self.release.clock.fps)).frames

    def _read(self, clip: Clip) -> Media:
        return (round_trip if self.coded else read_from_frame_1)(self.release, clip)


@dataclass(frozen=True)
class InTurns:
    """A model that hears each question and then answers it, until it ends by itself.

    Its own earlier answers are what it remembers. Before a question that interrupts, its answer is taken back to as
    much of it as was played when the recorded question begins.

    Attributes:
        release: The model.
        settings: Generation settings.
        pauses: Whether the initiator's silence is heard from the end of a recorded answer to the start of the next, as
            in training; else the model's own pause is between turns, as in `vidchat infer`.
    """

    release: Release
    settings: GenerationSettings
    pauses: bool = True

    def answer(self, dialogue: Dialogue) -> Iterator[tuple[Asked, Media]]:
        every = list(questions(dialogue))
        undo = self.settings.chunks + 1 if any(asked.interrupted for asked in every) else 0
        settings = replace(self.settings, undo=undo)
        conversation = _start(self.release, dialogue.turns[every[0].turn].clip, settings)
        pause = 0 if self.pauses else conversation.sampling.pause
        for number, asked in enumerate(every):
            conversation.wait(pause if number and not asked.interrupts else 0)
            for heard in _hear(self.release, self._question(dialogue, asked)):
                conversation.hear_chunk(heard.chunk)
            conversation.wait(pause)
            chunks = list(conversation.answer())
            yield asked, _join(self.release, chunks)
            if asked.interrupted:
                said, played = len(chunks), self._played(dialogue, asked)
                if said > played:  # if it ended by itself, that took one more tick
                    conversation.take_back(said - played + (not conversation.in_turn))

    def listen(self, dialogue: Dialogue) -> Tensor:
        reference = read_frame_0(self.release, dialogue.answer)
        question = dialogue.question
        assert question is not None, "a listening dialogue has somebody who is heard"
        chunks = _attend(self.release, dialogue.answer, question, self.settings)
        return torch.cat([reference[None], _join(self.release, chunks).frames])

    def go_on(self, dialogue: Dialogue, seconds: int) -> Tensor:
        clock = self.release.clock
        settings = replace(self.settings, chunks=clock.chunks(seconds * clock.fps + 1), ends=False)
        return next(InTurns(self.release, settings, self.pauses).answer(dialogue))[1].frames

    def _question(self, dialogue: Dialogue, asked: Asked) -> Clip:
        """Returns what is heard before an answer."""
        before, (question, answer) = dialogue.turns[: asked.turn - 1], dialogue.turns[asked.turn - 1 : asked.turn + 1]
        if not self.pauses:
            return question.clip
        start, frame = question.clip.start, 1 / self.release.clock.fps
        if before and before[-1].clip.end is not None and not asked.interrupts:
            start = before[-1].clip.end - frame  # a clip's frame 0 is the last frame of what comes before it
        return replace(question.clip, start=start, end=answer.clip.start + frame)

    def _played(self, dialogue: Dialogue, asked: Asked) -> int:
        """Returns how many chunks of an answer were played when the next question begins."""
        answer, following = dialogue.turns[asked.turn : asked.turn + 2]
        return _step(self.release, following.start) - _step(self.release, answer.start)


@dataclass(frozen=True)
class FullDuplex(InTurns):
    """A model that is generated at every step, while the initiator's whole recording is heard chunk by chunk.

    Its answer is what it says from the end of a question to the start of the next, if that does not interrupt.
    """

    def answer(self, dialogue: Dialogue) -> Iterator[tuple[Asked, Media]]:
        clock, turns = self.release.clock, dialogue.turns
        whole = replace(turns[0].clip, end=turns[-1].clip.end)
        mine = replace(turns[1].clip, start=whole.start)
        chunks = _attend(self.release, mine, whole, self.settings)
        for asked in questions(dialogue):
            if not asked.interrupted:
                heard, following = turns[asked.turn - 1], turns[asked.turn + 1 : asked.turn + 2]
                begin = _step(self.release, heard.start) + clock.chunks(_length(heard.clip, clock.fps))
                end = _step(self.release, following[0].start) if following else len(chunks)
                yield asked, _join(self.release, chunks[begin:end])


def _read(release: Release, clip: Clip, frames: int | None = None) -> Media:
    clock = release.clock
    return read_clip(
        clip,
        fps=clock.fps,
        size=release.size,
        sample_rate=clock.sample_rate,
        max_seconds=None if frames is None else frames / clock.fps,
    )


def _start(release: Release, clip: Clip, settings: GenerationSettings) -> Conversation:
    """Starts a conversation with the person of a clip, whose frame 0 is the reference."""
    with torch.no_grad():
        batch = ChunkBatch.start(release.video_vae.encode(from_bytes(read_frame_0(release, clip)[None]))[:, :, 0])
    parts = (release.responder, release.video_vae, release.audio_codec)
    return Conversation(*parts, batch, settings, release.graphs)


def _hear(release: Release, clip: Clip) -> Iterator[Heard]:
    """Encodes a clip chunk by chunk, as it would arrive."""
    stream = HeardStream(release.video_vae, release.audio_codec, release.clock)
    return hear_clip(clip, stream, release.clock, release.size, audio=True)


def _attend(release: Release, mine: Clip, heard: Clip, settings: GenerationSettings) -> list[GeneratedChunk]:
    """Generates as many chunks as another person's clip has, while it is heard; the reference is `mine`'s frame 0."""
    conversation = _start(release, mine, replace(settings, chunks=1, ends=False))
    steps = full_duplex(conversation, [_hear(release, heard)], ends=False)
    return [step.said for step in steps if step.heard is not None and step.said is not None]


def _join(release: Release, chunks: list[GeneratedChunk]) -> Media:
    """Returns the frames and the audio of chunks that follow each other."""
    clock = release.clock
    frames = [to_bytes(chunk.frames[0].transpose(0, 1)) for chunk in chunks]
    waveform = [chunk.waveform[0] for chunk in chunks if chunk.waveform is not None]
    return Media(torch.cat(frames), torch.cat(waveform).clamp(-1, 1), clock.fps, clock.sample_rate)


def _step(release: Release, seconds: float | None) -> int:
    assert seconds is not None, "the turns of an encounter have starts"
    return round(seconds * release.clock.chunks_per_second)


def _length(clip: Clip, fps: int) -> int:
    assert clip.end is not None, "the clips of an encounter are spans"
    return round((clip.end - clip.start) * fps)
