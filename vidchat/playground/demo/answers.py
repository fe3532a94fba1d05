"""Answers to the test dialogues: the truth, its round trip through the tokenizers, and the answers of models."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from vidchat.bench.spoken_distance import Floats, cepstra
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import Media, read_clip, write_clip
from vidchat.dialogue import Clip, Dialogue
from vidchat.generation.answer import Question, answer
from vidchat.generation.conversation import GenerationSettings
from vidchat.generation.timing import Timing
from vidchat.playground.demo.measure import Scores, score
from vidchat.playground.demo.pixels import MouthReader
from vidchat.playground.people.render import candidate_waveforms
from vidchat.playground.people.script import Case
from vidchat.release import Release, load_release


def true_case(dialogue: Dialogue) -> Case:
    """Returns the topic and the feeling that the responder of a rendered dialogue has to understand."""
    truth = dialogue.answer.truth
    return Case(truth["topic"], truth["expression"])


class Answers:
    """The clips of the demo's page and their scores.

    Args:
        folder: Folder of the clips.
        train: Dialogues to which the mouth reader is fitted.
        test: Dialogues to answer.
        sampling: Values of `ChunkSampling` that replace those of the releases.
    """

    def __init__(
        self,
        folder: Path,
        train: Sequence[Dialogue],
        test: Sequence[Dialogue],
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.train, self.test, self.sampling = folder, train, list(test), sampling or {}
        self.clips: list[dict[str, Path]] = [{} for _ in self.test]
        self.timings: dict[str, list[Timing]] = defaultdict(list)
        self.references: dict[str, torch.Tensor] = {}

    def score(self, releases: Mapping[str, Path]) -> dict[str, Scores]:
        """Answers every test dialogue with every release; returns the scores of truth, round trip and releases."""
        loaded = {name: load_release(path) for name, path in releases.items()}
        first = next(iter(loaded.values()))
        clips = [self._read(dialogue.answer, first) for dialogue in self.test]
        truths = [_without_reference(media) for media in clips]
        for dialogue, media in zip(self.test, clips, strict=True):
            self.references.setdefault(dialogue.answer.speaker, media.frames[0])
        systems = {"truth": truths, "round trip": self._round_trips(first)}
        self._add_given_clips()
        self._add_clips("round trip")
        for name, release in loaded.items():
            systems[name] = self._generate(name, release)
            self._add_clips(name)
        reader = self._reader(first)
        spoken = self._spoken(first.clock.sample_rate)
        speakers = [dialogue.answer.speaker for dialogue in self.test]
        right = [true_case(dialogue) for dialogue in self.test]
        return {
            name: score(media, truths, self.references, speakers, right, spoken, reader)
            for name, media in track(systems.items(), "measuring", total=len(systems))
        }

    def time_answers(self, name: str, release: Release) -> float:
        """Answers every test dialogue with one release, without scoring; returns seconds per answer."""
        start = time.monotonic()
        self._add_given_clips()
        self._generate(name, release)
        self._add_clips(name)
        return (time.monotonic() - start) / len(self.test)

    def _add_given_clips(self) -> None:
        for clips, dialogue in zip(self.clips, self.test, strict=True):
            assert dialogue.question is not None
            clips.update({"initiator": dialogue.question.path, "truth": dialogue.answer.path})

    def notes(self) -> list[str]:
        """Returns the page's notes: how each number is measured, and the speed of each release."""
        lines = [
            "Face: the nearest of the test speakers' references, by RMS difference over the head.",
            "Mouth: correlation of the mouth opening, read from the pixels by a regression fitted to the renderer's "
            "truth, with the loudness of the answer's own audio, and with that of another answer's audio.",
            "Answer: the nearest of all possible answers, spoken by every test voice, by dynamic time warping over "
            "cepstra; in brackets the 95 % interval (Wilson's).",
            f"{len(self.test)} answers by speakers unseen in training. The round trip is the ceiling.",
        ]
        for name, timings in self.timings.items():
            rate = sum(t.duration for t in timings) / sum(t.total for t in timings)
            wait = 1000 * float(np.median([t.first_chunk for t in timings]))
            lines.append(
                f"{name}: generated at {rate:.2f} x real time on this machine; first chunk after {wait:.0f} ms."
            )
        return lines

    def _path(self, system: str, dialogue: Dialogue) -> Path:
        return self.folder / "clips" / f"{dialogue.id}_{system.replace(' ', '_')}.mp4"

    def _add_clips(self, system: str) -> None:
        for clips, dialogue in zip(self.clips, self.test, strict=True):
            clips[system] = self._path(system, dialogue)

    def _read(self, clip: Clip, release: Release) -> Media:
        clock = release.clock
        return read_clip(clip, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)

    def _round_trips(self, release: Release) -> list[Media]:
        return [self._round_trip(dialogue, release) for dialogue in track(self.test, "round trips")]

    def _round_trip(self, dialogue: Dialogue, release: Release) -> Media:
        clock = release.clock
        media = self._read(dialogue.answer, release)
        chunks = clock.chunks(len(media.frames))
        frames = from_bytes(media.frames[: clock.frames(chunks)])
        waveform = _without_reference(media).waveform[None, : clock.samples(chunks)]
        with torch.no_grad():
            decoded = release.video_vae.decode(release.video_vae.encode(frames))
            audio = release.audio_codec.decode(release.audio_codec.encode(waveform))
        result = Media(to_bytes(decoded[0, :, 1:].transpose(0, 1)), audio[0].clamp(-1, 1), clock.fps, clock.sample_rate)
        write_clip(self._path("round trip", dialogue), result.frames, result.waveform, clock.fps, clock.sample_rate)
        return result

    def _generate(self, name: str, release: Release) -> list[Media]:
        """Answers as `vidchat infer` does: from files to files."""
        results = []
        for index, dialogue in enumerate(track(self.test, f"answers, {name}")):
            assert dialogue.question is not None
            chunks = release.clock.chunks(dialogue.answer.truth["pictures"])
            question = Question(reference=dialogue.answer.path, initiator=dialogue.question.path)
            sampling = release.responder.sampling.changed(self.sampling)
            settings = GenerationSettings(chunks=chunks, seed=index, sampling=sampling, ends=False)
            timing = Timing()
            answer_chunks = list(answer(release, question, settings, self._path(name, dialogue), timing))
            self.timings[name].append(timing)
            frames = torch.cat([to_bytes(chunk.frames[0].transpose(0, 1)) for chunk in answer_chunks])
            audio = torch.cat([chunk.waveform[0] for chunk in answer_chunks if chunk.waveform is not None])
            results.append(Media(frames, audio.clamp(-1, 1), release.clock.fps, release.clock.sample_rate))
        return results

    def _reader(self, release: Release) -> MouthReader:
        clips = [self._read(dialogue.answer, release).frames for dialogue in self.train]
        openings = [dialogue.answer.truth["mouth"] for dialogue in self.train]
        return MouthReader().fit(clips, [o[: len(c)] for o, c in zip(openings, clips, strict=True)])

    def _spoken(self, sample_rate: int) -> dict[str, list[Floats]]:
        """Returns the cepstra of every possible answer in the voice of every test speaker."""
        voices = {dialogue.answer.speaker: dialogue.answer.truth for dialogue in self.test}
        spoken: dict[str, list[Floats]] = defaultdict(list)
        for truth in voices.values():
            for text, waveform in candidate_waveforms(dict(truth), 3 * sample_rate, sample_rate).items():
                spoken[text].append(cepstra(waveform, sample_rate))
        return dict(spoken)


def _without_reference(media: Media) -> Media:
    """Returns a clip from frame 1 on, as a model generates it."""
    return Media(media.frames[1:], media.waveform[media.sample_rate // media.fps :], media.fps, media.sample_rate)
