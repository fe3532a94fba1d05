"""Two ways to talk with a model about clips, both by `Conversation.tick`: in turns, and in full duplex."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from vidchat.data.media.pixels import to_bytes
from vidchat.dialogue import ChunkClock
from vidchat.generation.conversation import ENDED, Conversation, GeneratedChunk
from vidchat.generation.heard import Heard

Clips = Sequence[Iterable[Heard]]


class Step(NamedTuple):
    """A step of the clock: what is heard and what is said in it, or `None`."""

    heard: Heard | None
    said: GeneratedChunk | None


def take_turns(conversation: Conversation, clips: Clips) -> Iterator[Step]:
    """Hears each clip and then answers it, until the answer ends or `settings.chunks` are said.

    Between turns pass the steps of `sampling.pause`. Without clips, the responder speaks once.
    """
    pause = conversation.sampling.pause
    for number, clip in enumerate(clips or [()]):
        if number:
            yield from _wait(conversation, pause)
        for heard in clip:
            conversation.hear_chunk(heard.chunk)
            yield Step(heard, None)
        if clips:
            yield from _wait(conversation, pause)
        for said in conversation.answer():
            yield Step(None, said)


def _wait(conversation: Conversation, steps: int) -> Iterator[Step]:
    for _ in range(steps):
        conversation.wait(1)
        yield Step(None, None)


def full_duplex(conversation: Conversation, clips: Clips, ends: bool) -> Iterator[Step]:
    """Generates the responder at every step, also while a clip is heard; the next clip follows the end of the answer.

    Args:
        conversation: A new conversation with `settings.ends` off: for the model, all of it is one turn.
        clips: The chunks of each clip, and then of a person who waits (`hear_clip`): somebody is always there.
        ends: Whether an answer ends by itself before it has `settings.chunks` chunks.
    """
    said = conversation.tick()
    people: Sequence[Iterable[Heard | None]] = clips or [repeat(None)]
    for clip in people:
        goes_on, count = 1.0, 0
        for heard in clip:
            yield Step(heard, said)
            said = conversation.tick(None if heard is None else heard.chunk)
            if heard is None or heard.over:
                assert conversation.end is not None, "a chunk was read"
                goes_on, count = goes_on * (1 - float(conversation.end)), count + 1
                if count == conversation.settings.chunks or (ends and goes_on < ENDED):
                    break


class Screen:
    """One person as an audience sees them: chunks as they come, between them the last frame and silence.

    Args:
        clock: The model's clock.
        frame: (3, H, W) uint8, shown before the first chunk; `None` if a chunk comes first.
    """

    def __init__(self, clock: ChunkClock, frame: Tensor | None = None) -> None:
        self._frame, self._count, self._silence = frame, clock.temporal_stride, torch.zeros(clock.samples_per_chunk)

    def show(self, frames: Tensor | None, waveform: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns frames (4, 3, H, W) uint8 and a waveform (samples,) of one step, in which there may be a chunk."""
        if frames is None:
            assert self._frame is not None, "a chunk comes first"
            frames = self._frame.expand(self._count, -1, -1, -1)
        self._frame = frames[-1]
        return frames, self._silence if waveform is None else waveform.float().cpu()

    def show_said(self, said: GeneratedChunk | None) -> tuple[Tensor, Tensor]:
        """Shows what the responder of B = 1 says, see `show`."""
        if said is None:
            return self.show(None, None)
        return self.show(to_bytes(said.frames[0].transpose(0, 1)), None if said.waveform is None else said.waveform[0])
