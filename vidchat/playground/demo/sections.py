"""The sections and the notes of the demo's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vidchat.dialogue import Dialogue
from vidchat.playground.demo.answers import Acted
from vidchat.playground.demo.conversation import questions
from vidchat.playground.demo.measure import Scores
from vidchat.playground.demo.page import Caption, Section, Shown
from vidchat.playground.demo.people import TestPeople
from vidchat.playground.people.exchanges import right_answer


def make_sections(people: TestPeople, systems: Mapping[str, Acted], scores: Mapping[str, Scores]) -> list[Section]:
    """Returns the page's sections: answers to one question, conversations, and listeners."""
    count = len(people.conversations)
    talks = [_conversation(dialogue, i, systems, scores) for i, dialogue in enumerate(people.conversations)]
    by_length = sorted(zip(people.conversations, talks, strict=True), key=lambda pair: -len(pair[0].turns))
    one = [shown for dialogue, shown in by_length if len(dialogue.turns) == 2]
    several = [shown for dialogue, shown in by_length if len(dialogue.turns) > 2]
    listeners = [_listener(dialogue, i, count, systems, scores) for i, dialogue in enumerate(people.listening)]
    sections = [
        Section("Conversations", "Several questions, each answered before the next is asked.", several),
        Section("One question", "", one),
        Section("Listening", "Nobody on the right speaks: who listens nods when a phrase has ended.", listeners),
    ]
    return [section for section in sections if section.shown]


def _conversation(dialogue: Dialogue, index: int, systems: Mapping[str, Acted], scores: Mapping[str, Scores]) -> Shown:
    asked = list(questions(dialogue))
    words = [f"“{dialogue.turns[one.turn - 1].clip.text}” ({one.case.expression})" for one in asked]
    captions = {
        name: [
            Caption(" ".join(right_answer(one.kind, case, one.long)), case == one.case)
            for one, case in zip(asked, s.answers[index], strict=True)
        ]
        for name, s in scores.items()
    }
    return Shown(", ".join(words), _films(systems, index), captions)


def _listener(
    dialogue: Dialogue, index: int, offset: int, systems: Mapping[str, Acted], scores: Mapping[str, Scores]
) -> Shown:
    spoken = dialogue.turns[0].clip
    ends = _seconds([end for _, end in spoken.truth["phrases"]])
    title = f"“{spoken.text}” ({spoken.truth['expression']}), phrases end at {ends}"
    captions = {
        name: [Caption(f"nods at {_seconds(nods)}" if (nods := s.nodded[index]) else "no nod")]
        for name, s in scores.items()
    }
    return Shown(title, _films(systems, offset + index), captions)


def _films(systems: Mapping[str, Acted], index: int) -> dict[str, Path]:
    return {name: acted.films[index] for name, acted in systems.items() if acted.films}


def _seconds(times: Iterable[float]) -> str:
    return ", ".join(f"{time:.1f}" for time in times) + " s"


def make_notes(people: TestPeople, systems: Mapping[str, Acted]) -> list[str]:
    """Returns the page's notes: how each number is measured, and the speed of each model."""
    lines = [
        "Face: the nearest of the test people's references, by RMS difference over the head.",
        "Mouth and nods: the mouth's opening and how far a nod lowers the head, read from the pixels by regressions "
        "fitted to the renderer's truth of other people. Mouth: its correlation with the loudness of the answer's own "
        "audio, and with that of another answer's. Nods: F1 score of those within 0.5 s after the end of a phrase.",
        "Answer: the nearest of all twelve possible ones, spoken by several voices, by dynamic time warping over "
        "cepstra; in brackets the 95 % interval (Wilson's). A model remembers its own earlier answers.",
        f"{len(people.conversations)} people unseen in training. The round trip through the tokenizers is the ceiling.",
    ]
    for name, acted in systems.items():
        if acted.timings:
            rate = sum(t.duration for t in acted.timings) / sum(t.total for t in acted.timings)
            wait = 1000 * float(np.median([t.first_chunk for t in acted.timings]))
            lines.append(
                f"{name}: generated at {rate:.2f} x real time on this machine; first chunk after {wait:.0f} ms."
            )
    return lines
