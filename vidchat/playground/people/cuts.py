"""Dialogues of the four branches, cut out of an encounter.

Every cut can be understood by itself: none begins with a follow-up on words outside of it, and none ends in an answer
that somebody outside of it interrupts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from vidchat.dialogue import Branch, Role
from vidchat.playground.people.encounter import CUTS, Encounter, SpokenTurn
from vidchat.playground.people.track import Track

DUPLEX = 0.5
"""Share of multi-turn dialogues in which both people are there all the time; in the others, only who speaks is."""
WAIT = 0.5
"""Share of questions whose clip goes on until the answer begins; after the others, nobody is there for a moment."""
MHM = "mhm"


@dataclass(frozen=True)
class Part:
    """A span of a person's track that is a turn of a dialogue.

    Attributes:
        role: Role in the dialogue; a listening initiator is the dialogue's responder.
        person: 0, the encounter's initiator, or 1.
        first: First frame, on the grid.
        last: Last frame, on the grid.
        turn: What is spoken or heard in it; `None` where that is more than one turn.
    """

    role: Role
    person: int
    first: int
    last: int
    turn: SpokenTurn | None


Cut = tuple[Part, ...]
TimedWord = tuple[str, float, float]
"""Text, start and end in seconds of the encounter."""


def draw_cuts(encounter: Encounter, weights: Mapping[Branch, float], count: int) -> list[tuple[Branch, Cut]]:
    """Draws dialogues of an encounter, each at most once, their branches by weight as far as there are any left."""
    rng, left = encounter.generator(CUTS), all_cuts(encounter)
    drawn: list[tuple[Branch, Cut]] = []
    for _ in range(count):
        usable = [branch for branch, cuts in left.items() if cuts and weights[branch] > 0]
        if not usable:
            break
        shares = np.array([weights[branch] for branch in usable])
        branch = usable[int(rng.choice(len(usable), p=shares / shares.sum()))]
        cut = left[branch].pop(int(rng.integers(len(left[branch]))))
        if branch == "multi_turn" and rng.random() < DUPLEX:
            cut = _duplex(cut)
        elif branch in ("dialogue", "multi_turn"):
            cut = _waiting(cut, rng)
        drawn.append((branch, cut))
    return drawn


def all_cuts(encounter: Encounter) -> dict[Branch, list[Cut]]:
    """Every dialogue that an encounter holds, by branch."""
    pairs = list(zip(encounter.turns[::2], encounter.turns[1::2], strict=True))
    interrupting = [False, *(answer.interrupted for _, answer in pairs[:-1])]
    stands_alone = [exchange.kind == "topic" for exchange in encounter.exchanges]
    whole = [number for number, (_, answer) in enumerate(pairs) if not answer.interrupted]
    beginnings = [number for number in range(len(pairs)) if stands_alone[number] and not interrupting[number]]
    return {
        "single": [(_spoken(pairs[number][1]),) for number in whole],
        "dialogue": [tuple(map(_spoken, pairs[number])) for number in whole if stands_alone[number]],
        "listening": [
            _heard(turn)
            for turn in encounter.turns
            if not turn.interrupted and not (turn.person == 0 and interrupting[turn.exchange])
        ],
        "multi_turn": [
            tuple(_spoken(turn) for pair in pairs[begin : end + 1] for turn in pair)
            for begin in beginnings
            for end in whole
            if end > begin
        ],
    }


def record(name: str, branch: Branch, cut: Cut, encounter: Encounter, tracks: tuple[Track, Track]) -> dict[str, Any]:
    """The cut as a line of the manifest. A turn's `at` is where its clip starts on the dialogue's clock, in seconds."""
    zero = min(part.first for part in cut)
    turns = [_record_turn(part, zero, encounter, tracks[part.person]) for part in cut]
    return {"id": name, "split": encounter.plan.split, "branch": branch, "tier": "sft", "turns": turns}


def clip_name(encounter: Encounter, person: int) -> str:
    """File of a person's track, relative to the data set's folder."""
    return f"clips/{encounter.id}_{'ab'[person]}.mp4"


def _spoken(turn: SpokenTurn) -> Part:
    return Part("initiator" if turn.person == 0 else "responder", turn.person, turn.first, turn.last, turn)


def _heard(turn: SpokenTurn) -> Cut:
    """The turn, and the other person listening to it until the nod after its end."""
    return (
        Part("initiator", turn.person, turn.first, turn.settled, turn),
        Part("responder", 1 - turn.person, turn.first, turn.settled, turn),
    )


def _waiting(cut: Cut, rng: np.random.Generator) -> Cut:
    """The cut, in which some of those who ask are seen until they are answered."""
    follow = [after if before.role != after.role == "responder" else None for before, after in pairwise(cut)]
    return (
        *(
            replace(part, last=max(part.last, after.first)) if after and rng.random() < WAIT else part
            for part, after in zip(cut[:-1], follow, strict=True)
        ),
        cut[-1],
    )


def _duplex(cut: Cut) -> Cut:
    """Both people from the first frame to the last, the initiator's track as one turn and the responder's as one."""
    first, last = cut[0].first, cut[-1].last
    return Part("initiator", 0, first, last, None), Part("responder", 1, first, last, None)


def _record_turn(part: Part, zero: int, encounter: Encounter, track: Track) -> dict[str, Any]:
    fps = encounter.fps
    start, end = part.first / fps, (part.last + 1) / fps
    words = [(word.text, word.start, word.end) for word in track.words if start <= word.start < end]
    hums = [(MHM, *span) for span in track.backchannels if start <= span[0] < end]
    said = sorted([*words, *hums], key=lambda word: word[1])
    return {
        "role": part.role,
        "speaker": track.speaker.name,
        "clip": clip_name(encounter, part.person),
        "start": round(start, 6),
        "end": round(end, 6),
        "at": round(start - zero / fps, 6),
        **_transcript(said, start),
        "truth": {
            "encounter": encounter.id,
            "first": part.first,
            "pictures": part.last - part.first + 1,
            "voice": track.speaker.voice.record(),
            **_meaning(part, encounter),
            "words": _timed(words, start),
            "phrases": [_shifted(span, start) for span in track.phrases if start <= span[0] < end],
            "nods": [_shifted(span, start) for span in track.reactions.nods if start <= span[0] < end],
            "backchannels": [_shifted(span, start) for _, *span in hums],
            "mouth": [round(pose.mouth, 4) for pose in track.poses[part.first : part.last + 1]],
        },
    }


def _meaning(part: Part, encounter: Encounter) -> dict[str, Any]:
    """What the turn that is spoken or heard is about."""
    if part.turn is None:
        return {}
    number = part.turn.exchange
    exchange = encounter.exchanges[number]
    return {
        "speaks": part.person == part.turn.person,
        "kind": exchange.kind,
        "topic": exchange.case.topic,
        "expression": exchange.case.expression,
        "interrupted": part.turn.interrupted,
        "interrupts": part.turn.person == 0 and number > 0 and encounter.exchanges[number - 1].interrupted,
    }


def _transcript(said: Sequence[TimedWord], start: float) -> dict[str, Any]:
    """Returns the keys `text` and `words`, or none where nothing is said."""
    return {"text": " ".join(text for text, _, _ in said), "words": _timed(said, start)} if said else {}


def _timed(said: Sequence[TimedWord], start: float) -> list[list[str | float]]:
    """Returns the words with their spans in seconds of a clip that starts then."""
    return [[text, *_shifted(span, start)] for text, *span in said]


def _shifted(span: Sequence[float], start: float) -> list[float]:
    """The span in seconds of a clip that starts then."""
    return [round(time - start, 4) for time in span]
