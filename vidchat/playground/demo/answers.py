"""What the demo's systems say and do: the truth, its round trip through the tokenizers, and models in conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from vidchat.data.media.pixels import to_bytes
from vidchat.data.media.read import ClipWriter, Media, read_clip, read_image, write_clip
from vidchat.dialogue import ChunkClock, Clip, Dialogue
from vidchat.generation.answer import Question, talk
from vidchat.generation.conversation import GenerationSettings
from vidchat.generation.talk import Screen, Step
from vidchat.generation.timing import Timing, timed
from vidchat.playground.demo.people import TestPeople
from vidchat.playground.demo.play import read_frame_0, read_from_frame_1, round_trip
from vidchat.release import Release

MOST_CHUNKS = 32
"""Chunks after which an answer stops that has not ended; the longest true one has 26."""


@dataclass
class Acted:
    """One system's part in the test dialogues. Each clip starts with its still, and its waveform with frame 1.

    Attributes:
        answers: Answers of each conversation.
        listening: Clip of each listener.
        films: File that shows each conversation, and then each listener, beside the other person.
        timings: Speed of generation in each conversation.
    """

    answers: list[list[Media]] = field(default_factory=list)
    listening: list[Media] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def add(self, dialogue: Dialogue, clips: list[Media]) -> None:
        """Adds the answers of a conversation, or the one clip of a listener."""
        if dialogue.branch == "listening":
            self.listening += clips
        else:
            self.answers.append(clips)


def act_truly(people: TestPeople, release: Release, folder: Path) -> Acted:
    """Reads the true clips, and writes their films into a folder."""
    acted = Acted()
    for dialogue in track([*people.conversations, *people.listening], "true clips"):
        clips = [turn.clip for turn in dialogue.turns if turn.role == "responder"]
        acted.add(dialogue, [_with_still(release, clip, read_from_frame_1(release, clip)) for clip in clips])
        acted.films.append(folder / f"{dialogue.id}_truth.mp4")
        _write_true_film(acted.films[-1], dialogue, release)
    return acted


def act_in_round_trips(people: TestPeople, release: Release) -> Acted:
    """Passes the true clips through the tokenizers."""
    acted = Acted()
    for dialogue in track([*people.conversations, *people.listening], "round trips"):
        clips = [turn.clip for turn in dialogue.turns if turn.role == "responder"]
        acted.add(dialogue, [_with_still(release, clip, round_trip(release, clip)) for clip in clips])
    return acted


def act_by_model(name: str, people: TestPeople, release: Release, folder: Path) -> Acted:
    """Holds the conversations and listens with a model, as `vidchat infer` does; writes the films into a folder."""
    acted = Acted()
    for index, dialogue in enumerate(track([*people.conversations, *people.listening], f"{name} model")):
        listens = dialogue.branch == "listening"
        asked = [turn.clip for turn in dialogue.turns if turn.role == "initiator"]
        question = Question(dialogue.answer.path, asked, listen=listens)
        settings, timing = GenerationSettings(MOST_CHUNKS, seed=index), Timing(chunk=_chunk_seconds(release.clock))
        if listens:  # only while it hears
            settings = replace(settings, chunks=1)
        steps = list(timed(talk(release, question, settings), timing))
        if listens:
            steps = [step for step in steps if step.heard is not None and not step.heard.over]
        image = read_image(dialogue.answer.path, release.size)
        acted.add(dialogue, list(said_turns(steps, image, release.clock)))
        acted.timings += [] if listens else [timing]
        acted.films.append(folder / f"{dialogue.id}_{name.replace(' ', '_')}.mp4")
        write_film(acted.films[-1], steps, image, release.clock)
    return acted


def _chunk_seconds(clock: ChunkClock) -> float:
    return float(1 / clock.chunks_per_second)


def _read(clip: Clip, release: Release) -> Media:
    clock = release.clock
    return read_clip(clip, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)


def _with_still(release: Release, clip: Clip, media: Media) -> Media:
    return replace(media, frames=torch.cat([read_frame_0(release, clip)[None], media.frames]))


def said_turns(steps: Sequence[Step], image: Tensor, clock: ChunkClock) -> Iterator[Media]:
    """Yields each turn of the responder."""
    for speaks, group in groupby((step.said for step in steps), key=lambda said: said is not None):
        if speaks:
            chunks = [said for said in group if said is not None]
            frames = torch.cat([image[None], *(to_bytes(said.frames[0].transpose(0, 1)) for said in chunks)])
            waveform = torch.cat([said.waveform[0] for said in chunks if said.waveform is not None])
            yield Media(frames, waveform.clamp(-1, 1), clock.fps, clock.sample_rate)


def write_film(path: Path, steps: Sequence[Step], image: Tensor, clock: ChunkClock) -> None:
    """Writes both people side by side, with both voices."""
    initiator, responder = Screen(clock), Screen(clock, image)
    with ClipWriter(path, clock.fps, clock.sample_rate) as film:
        for heard, said in steps:
            other, voice = initiator.show(heard.frames, heard.waveform) if heard else initiator.show(None, None)
            frames, waveform = responder.show_said(said)
            film.write(torch.cat([other, frames], dim=3), (waveform + voice).clamp(-1, 1))


def _write_true_film(path: Path, dialogue: Dialogue, release: Release) -> None:
    """Writes both people from the start of the first turn to the end of the last one."""
    paths = {turn.role: turn.clip.path for turn in dialogue.turns}
    start = min(turn.clip.start for turn in dialogue.turns)
    end = max(turn.clip.end or 0.0 for turn in dialogue.turns)
    left, right = (_read(Clip(paths[role], "", start=start, end=end), release) for role in ("initiator", "responder"))
    frames, waveform = torch.cat([left.frames, right.frames], dim=3), left.waveform + right.waveform
    write_clip(path, frames, waveform.clamp(-1, 1), left.fps, left.sample_rate)
