"""The people of the demo's test: conversations to hold, questions to listen to, and others to fit the readers to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidchat.data.folder import read_dialogues
from vidchat.dialogue import Clip, Dialogue
from vidchat.playground.people.render_encounters import EncounterSettings, render_encounters

EVERY = 100
"""More cuts than an encounter has."""
LONGEST = 6
"""Most turns of a conversation."""


@dataclass(frozen=True)
class TestPeople:
    """Rendered test dialogues, one of each kind of each encounter; in each, another person answers.

    Attributes:
        conversations: Questions with their answers, one after another, none interrupted.
        listening: Dialogues of which the responder only listens.
        others: Clips of people who answer in none of these, speaking and listening.
    """

    conversations: tuple[Dialogue, ...]
    listening: tuple[Dialogue, ...]
    others: tuple[Clip, ...]

    def first(self, count: int) -> TestPeople:
        """Returns the first conversations and listeners."""
        return TestPeople(self.conversations[:count], self.listening[:count], self.others)


def render_test(folder: Path, encounters: int, others: int, seed: int) -> TestPeople:
    """Renders the test people, of whom `others` are met by the readers only."""
    settings = EncounterSettings(max(4, encounters + others), cuts=EVERY, pairings=1, seed=seed)
    render_encounters(folder, settings)
    return choose(read_dialogues(folder), encounters)


def choose(dialogues: Sequence[Dialogue], encounters: int) -> TestPeople:
    """Chooses the longest conversation and question of each of the first encounters.

    Args:
        dialogues: All cuts of rendered encounters.
        encounters: Number of encounters to choose from; the people of the others are for the readers.
    """
    cuts: dict[str, list[Dialogue]] = defaultdict(list)
    for dialogue in dialogues:
        cuts[dialogue.turns[0].clip.truth["encounter"]].append(dialogue)
    tested = list(cuts.values())[:encounters]
    conversations = [max(filter(_is_conversation, own), key=lambda d: len(d.turns)) for own in tested]
    listening = [
        max((d for d in own if d.branch == "listening" and d.answer.path == conversation.answer.path), key=_phrases)
        for own, conversation in zip(tested, conversations, strict=True)
    ]
    answering = {dialogue.answer.speaker for dialogue in conversations}
    present = [turn.clip for dialogue in dialogues if dialogue.branch == "listening" for turn in dialogue.turns]
    others = [clip for clip in present if clip.speaker not in answering]
    return TestPeople(tuple(conversations), tuple(listening), tuple(others))


def _is_conversation(dialogue: Dialogue) -> bool:
    truths = [turn.clip.truth for turn in dialogue.turns]
    spoken = dialogue.branch in ("dialogue", "multi_turn") and all("kind" in truth for truth in truths)
    return spoken and len(truths) <= LONGEST and not any(truth["interrupted"] for truth in truths)


def _phrases(dialogue: Dialogue) -> int:
    return len(dialogue.turns[0].clip.truth["phrases"])
