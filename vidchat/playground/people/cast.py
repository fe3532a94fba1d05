"""Casts and topics of a data set's dialogues: every random choice that is made before rendering.

Each speaker and each dialogue has its own generator, seeded by (seed, purpose, index), so each can be made without the
others, in any process and any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from vidchat.dialogue import Split
from vidchat.playground.people.person import BUILDS, Identity, random_identity
from vidchat.playground.people.script import Case, cases
from vidchat.playground.people.speaker_voice import Voice, random_voice

_SPEAKER, _DIALOGUE, _ORDER = 1, 2, 3

SHARES: dict[Split, float] = {"test": 0.12, "val": 0.04}
"""Shares of the dialogues; the rest is `train`."""
DIALOGUES_PER_SPEAKER = 2


@dataclass(frozen=True)
class Speaker:
    """A person of the data set; a name stands for one face and one voice."""

    name: str
    identity: Identity
    voice: Voice


@dataclass(frozen=True)
class Plan:
    """One dialogue before it is performed.

    Attributes:
        seed: Seed of the generator that draws the two performances.
    """

    id: str
    split: Split
    initiator: Speaker
    responder: Speaker
    case: Case
    phrasing: int
    seed: tuple[int, int, int]


def make_speaker(seed: int, number: int) -> Speaker:
    """Speaker `number` of the data set with this seed; builds take turns, so that every split has all of them."""
    rng = np.random.default_rng((seed, _SPEAKER, number))
    build = BUILDS[number % len(BUILDS)]
    identity = random_identity(rng, build)
    return Speaker(f"s{number:04d}", identity, random_voice(rng, build))


def plan_dialogues(dialogues: int, seed: int, per_speaker: int = DIALOGUES_PER_SPEAKER) -> list[Plan]:
    """Plans all dialogues of a data set: no speaker is in two splits, and cases are balanced within each split.

    Args:
        dialogues: Number of dialogues, at least 4.
        seed: Seed of all random choices.
        per_speaker: Number of dialogues in which each speaker answers.

    Raises:
        ValueError: There are too few dialogues for three splits.
    """
    if dialogues < 4:
        raise ValueError(f"{dialogues} dialogues cannot fill the splits train, val and test; ask for 4 or more")
    plans: list[Plan] = []
    first = 0
    for split, count in _counts(dialogues).items():
        # At least two people, who take turns asking.
        speakers = max(2, round(count / per_speaker), min(count, 6 if split != "train" else 2))
        members = np.arange(first, first + speakers)
        plans += _plan_split(split, count, members, seed, len(plans))
        first += speakers
    return plans


def _counts(dialogues: int) -> dict[Split, int]:
    few = {split: max(1, round(dialogues * share)) for split, share in SHARES.items()}
    return {"train": dialogues - sum(few.values()), **few}


def _plan_split(split: Split, count: int, members: np.ndarray, seed: int, first: int) -> list[Plan]:
    rng = np.random.default_rng((seed, _ORDER, first))
    every = cases()
    order = np.concatenate([rng.permutation(len(every)) for _ in range(count // len(every) + 1)])[:count]
    answering = np.concatenate([rng.permutation(members) for _ in range(count // len(members) + 1)])[:count]
    plans = []
    for i in range(count):
        asking = int(rng.choice(members[members != answering[i]]))
        phrasing = int(rng.integers(2))
        number = first + i
        plans.append(
            Plan(
                id=f"d{number:06d}",
                split=cast(Split, split),
                initiator=make_speaker(seed, asking),
                responder=make_speaker(seed, int(answering[i])),
                case=every[order[i]],
                phrasing=phrasing,
                seed=(seed, _DIALOGUE, number),
            )
        )
    return plans
