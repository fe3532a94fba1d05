"""Scores releases in conversations with rendered people: right answers, where they end, listening, and decay.

    python -m vidchat.playground.people --output outputs/eval --encounters 400 --seed 1
    OMP_NUM_THREADS=1 python benchmarks/conversations.py --root outputs/eval [--release checkpoints/demo]
        [--only answers duplex listening decay] [--conversations 60] [--no-pauses] [--sampling temperature=0.5]
        [--output outputs/conversations.json]

Every number is read from frames and audio alone. Beside a release stand the recorded clips, these after a round trip
through the tokenizers (the ceiling), and chance.

    answers     A question is heard and answered, then the next one, with the model's own earlier answers in memory.
                The initiator's pauses before answers and questions are heard, too (unless --no-pauses).
                An answer is the nearest of 12 possible ones. A question that interrupts an answer is counted apart.
                A length is right if it is within two chunks of the recorded one; its chance is that of always giving
                the mean length.
    duplex      The initiator's whole recording is heard chunk by chunk, and the responder generated at every step.
    listening   F1 of nods against the ends of heard phrases; chance are those that others hear. Mouth shut.
    decay       A first answer made to go on for 16 s: its first half second, and the last ones of 4 s and of 16 s.

Shares have 95 % intervals (Wilson's). Needs vidchat[demo].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidchat.data.folder import read_dialogues
from vidchat.generation.conversation import GenerationSettings
from vidchat.playground.demo.conversation import AnswerReader, Asked
from vidchat.playground.demo.decay import decay
from vidchat.playground.demo.encounters import read_encounters
from vidchat.playground.demo.listener import find_nods, nod_f1, nod_f1_shuffled, shut_share
from vidchat.playground.demo.measure import correlation, fit_readers, loudness, nearest_face, percent
from vidchat.playground.demo.pixels import Floats, MouthReader, NodReader
from vidchat.playground.demo.play import FullDuplex, InTurns, Recorded, Responder, read_frame_0
from vidchat.playground.people.script import Case
from vidchat.release import Release, load_release
from vidchat.runtime.atomic import write_text

SECTIONS = ("answers", "duplex", "listening", "decay")
VOICES = 6  # that speak the possible answers
WITHIN = 2  # chunks by which a length may differ
LONGEST = 5.0  # seconds of an answer that does not end
SHORT, LONG = 4, 16  # seconds of answers that go on
UNITS = {"psnr": "PSNR to the reference, dB", "sharpness": "sharpness over the reference's"}
FITTED = 12  # dialogues of each branch to which the readers of mouth and head are fitted


@dataclass(frozen=True)
class Score:
    """A number of one system.

    Attributes:
        measure: What is measured.
        system: Whose it is.
        value: The number; a share is in 0 .. 1.
        count: Number of trials of a share, else 0.
        chance: What guessing reaches, where that is known.
    """

    measure: str
    system: str
    value: float
    count: int = 0
    chance: float | None = None

    def __str__(self) -> str:
        return percent(self.value, self.count) if self.count else f"{self.value:.2f}"


class People:
    """The people of a folder of encounters, and what reads them.

    Args:
        root: Folder of rendered encounters.
        release: A release, for its clock and its size.
        count: Largest number of encounters and of listening dialogues.
    """

    def __init__(self, root: Path, release: Release, count: int) -> None:
        self.release, self.clock = release, release.clock
        self.every = read_encounters(root)
        self.encounters = self.every[:count]
        test = [dialogue for dialogue in read_dialogues(root) if dialogue.split == "test"]
        single, listening = ([d for d in test if d.branch == branch] for branch in ("single", "listening"))
        self._fitted = [*single[-FITTED:], *listening[-FITTED:]]
        known = {dialogue.answer.truth["encounter"] for dialogue in self._fitted}
        self.listening = [d for d in listening if d.answer.truth["encounter"] not in known][:count]

    @cached_property
    def references(self) -> dict[str, Tensor]:
        """Reference (3, H, W) uint8 of each responder."""
        answers = [dialogue.turns[1].clip for dialogue in self.every]
        return {clip.speaker: read_frame_0(self.release, clip) for clip in answers}

    @cached_property
    def reader(self) -> AnswerReader:
        voices = {voice["variant"]: voice for voice in (d.turns[1].clip.truth["voice"] for d in self.every)}
        return AnswerReader(list(voices.values())[:VOICES], self.clock.sample_rate)

    @cached_property
    def pixels(self) -> tuple[MouthReader, NodReader]:
        """Readers of mouth and head, fitted to people who are not measured as listeners."""
        return fit_readers([dialogue.answer for dialogue in self._fitted], self.release)


@dataclass(frozen=True)
class Answered:
    """What was read from an answer.

    Attributes:
        asked: The question.
        read: Case that the answer is right for.
        chunks: Its length.
        recorded: Length of the recorded answer.
        face: Whether its face is nearest to its own reference.
        opening: (n,) opening of the mouth.
        loudness: (n,) loudness of each frame.
    """

    asked: Asked
    read: Case
    chunks: int
    recorded: int
    face: bool
    opening: Floats
    loudness: Floats


def read_answers(people: People, name: str, responder: Responder) -> list[Answered]:
    """Reads the answers of all encounters; prints a line for each."""
    answers, clock = list[Answered](), people.clock
    for dialogue in people.encounters:
        for asked, media in responder.answer(dialogue):
            true, frames = dialogue.turns[asked.turn].clip, len(media.frames)
            assert true.end is not None, "the clips of an encounter are spans"
            answers.append(
                Answered(
                    asked,
                    people.reader.read(media.waveform.numpy(), asked.kind, asked.long),
                    frames // clock.temporal_stride,
                    clock.chunks(round((true.end - true.start) * clock.fps)),
                    nearest_face(media.frames, people.references) == true.speaker,
                    people.pixels[0].read(torch.cat([people.references[true.speaker][None], media.frames]))[1:],
                    loudness(media.waveform, frames),
                )
            )
        right = [answer.read == answer.asked.case for answer in answers]
        print(f"{name}, {dialogue.id}: {sum(right)} of {len(right)} answers right", file=sys.stderr, flush=True)
    return answers


def score_answers(name: str, answers: Sequence[Answered], where: str = "") -> Iterator[Score]:
    """Scores whether answers are right, by the number of the question."""
    places = defaultdict[str, list[Answered]](list)
    for answer in answers:
        asked = answer.asked
        places["after an interruption" if asked.interrupts else f"question {asked.number}"].append(answer)
    for place in sorted(places, key=lambda place: (place.startswith("after"), place)):
        hits = [answer.read == answer.asked.case for answer in places[place]]
        yield _share(f"right answer, {place}{where}", name, hits, 1 / 12)
    first = places["question 1"]
    topics = [answer.read.topic == answer.asked.case.topic for answer in first]
    feelings = [answer.read.expression == answer.asked.case.expression for answer in first]
    yield _share(f"right topic, question 1{where}", name, topics, 1 / 6)
    yield _share(f"right feeling, question 1{where}", name, feelings, 1 / 2)


def score_looks(name: str, answers: Sequence[Answered], people: int) -> Iterator[Score]:
    """Scores the faces of answers, and whether their mouths move with their own audio."""
    yield _share("face nearest to its reference", name, [answer.face for answer in answers], 1 / people)
    own = [correlation(answer.opening, answer.loudness) for answer in answers]
    others = [correlation(answer.opening, answers[k - 1].loudness) for k, answer in enumerate(answers)]
    yield Score("mouth and loudness, r", name, float(np.mean(own)), chance=float(np.mean(others)))


def score_ends(name: str, answers: Sequence[Answered]) -> Iterator[Score]:
    """Scores the lengths of answers that end by themselves."""
    whole = [answer for answer in answers if not answer.asked.interrupted]
    recorded = np.array([answer.recorded for answer in whole])
    always = np.abs(recorded - np.round(recorded.mean())) <= WITHIN
    hits = [abs(answer.chunks - answer.recorded) <= WITHIN for answer in whole]
    yield _share(f"length within {WITHIN} chunks", name, hits, float(always.mean()))
    right = [hit for hit, answer in zip(hits, whole, strict=True) if answer.read == answer.asked.case]
    yield _share(f"length within {WITHIN} chunks, right answers", name, right, float(always.mean()))
    yield Score("length over the recorded", name, sum(answer.chunks for answer in whole) / float(recorded.sum()))


def score_listening(people: People, name: str, responder: Responder) -> Iterator[Score]:
    """Scores listeners: nods when a phrase has been heard, mouth shut."""
    (mouth, head), nods, openings = people.pixels, list[list[float]](), list[Floats]()
    for dialogue in people.listening:
        frames = responder.listen(dialogue)
        nods.append(find_nods(head.read(frames), people.clock.fps).tolist())
        openings.append(mouth.read(frames))
    heard = [[end for _, end in dialogue.turns[0].clip.truth["phrases"]] for dialogue in people.listening]
    yield Score("nods after phrases, F1", name, nod_f1(nods, heard), chance=nod_f1_shuffled(nods, heard))
    yield Score("nods for each phrase", name, sum(map(len, nods)) / sum(map(len, heard)))
    yield Score("mouth shut, share of frames", name, shut_share(openings))


def score_decay(people: People, name: str, responder: Responder, seconds: int) -> Iterator[Score]:
    """Scores how answers hold their faces when they go on."""
    fps, ends, faces = people.clock.fps, defaultdict[str, list[float]](list), []
    for dialogue in people.encounters:
        speaker, frames = dialogue.turns[1].clip.speaker, responder.go_on(dialogue, seconds)
        for end in sorted({SHORT, seconds}):
            measured = decay(frames[: end * fps], people.references[speaker], fps)
            for key, value in asdict(measured).items():
                quantity, half = key.split("_")
                ends[f"{UNITS[quantity]}, {'first 0.5 s' if half == 'first' else f'last 0.5 s of {end} s'}"].append(
                    value
                )
        faces.append(nearest_face(frames[-(fps // 2) :], people.references) == speaker)
    for measure, values in ends.items():
        yield Score(measure, name, float(np.mean(values)))
    yield _share(f"face nearest to its reference after {seconds} s", name, faces, 1 / len(people.references))


def score(
    people: People,
    models: Mapping[str, Release],
    settings: GenerationSettings,
    only: Sequence[str],
    pauses: bool,
) -> Iterator[Score]:
    """Yields the scores of the recorded people, of their round trip, and of models."""
    recorded = {"recorded": Recorded(people.release), "round trip": Recorded(people.release, coded=True)}
    in_turns = {name: InTurns(release, settings, pauses) for name, release in models.items()}
    if {"answers", "duplex"} & set(only):
        for name, person in recorded.items():
            answers = read_answers(people, name, person)
            yield from score_answers(name, answers)
            yield from score_looks(name, answers, len(people.references))
    for name, model in in_turns.items():
        if "answers" in only:
            answers = read_answers(people, name, model)
            yield from score_answers(name, answers)
            yield from score_looks(name, answers, len(people.references))
            yield from score_ends(name, answers)
        if "duplex" in only:
            yield from score_answers(
                name, read_answers(people, name, FullDuplex(model.release, settings)), ", full duplex"
            )
    everyone: dict[str, Responder] = {**recorded, **in_turns}
    for name, who in everyone.items():
        if "listening" in only:
            yield from score_listening(people, name, who)
        if "decay" in only:
            yield from score_decay(people, name, who, LONG if name in models else SHORT)


def table(scores: Sequence[Score]) -> str:
    """Returns a Markdown table: a row for each measure, a column for each system."""
    systems = list(dict.fromkeys(score.system for score in scores))
    rows = defaultdict[str, dict[str, Score]](dict)
    for one in scores:
        rows[one.measure][one.system] = one
    lines = [f"| | {' | '.join(systems)} | chance |", "| --- " * (len(systems) + 2) + "|"]
    for measure, by_system in rows.items():
        cells = [str(by_system[system]) if system in by_system else "" for system in systems]
        chance, count = list(by_system.values())[-1].chance, list(by_system.values())[-1].count
        guess = "" if chance is None else f"{100 * chance:.0f} %" if count else f"{chance:.2f}"
        lines.append(f"| {measure} | {' | '.join(cells)} | {guess} |")
    return "\n".join(lines)


def _share(measure: str, system: str, hits: Sequence[bool], chance: float) -> Score:
    return Score(measure, system, float(np.mean(hits)) if hits else 0.0, max(1, len(hits)), chance)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="rendered encounters")
    parser.add_argument("--release", type=Path, nargs="+", default=[Path("checkpoints/demo")])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--conversations", type=int, default=60, help="encounters, and listening dialogues")
    parser.add_argument("--no-pauses", action="store_true", help="answer right after a question, not as recorded")
    parser.add_argument("--sampling", nargs="*", default=[], metavar="KEY=VALUE", help="replaced values")
    parser.add_argument("--output", type=Path, default=Path("outputs/conversations.json"))
    options = parser.parse_args(arguments)
    models = {str(path): load_release(path) for path in options.release}
    release = next(iter(models.values()))
    values = {name: json.loads(value) for name, value in (word.split("=") for word in options.sampling)}
    settings = GenerationSettings(
        round(LONGEST * release.clock.chunks_per_second), sampling=release.responder.sampling.changed(values)
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    scores = list[Score]()
    for one in score(
        People(options.root, release, options.conversations), models, settings, options.only, not options.no_pauses
    ):
        scores.append(one)
        write_text(options.output, json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    print(table(scores))


if __name__ == "__main__":
    main()
