"""More dialogues from the same clips: an answer is right for every question with the same meaning and feeling.

A model that sees each answer with one question only can memorise the pairs. Several questions to an answer, by other
people and in other words, share nothing but their meaning.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

_PAIRING = 4  # beside the kinds of generators in cast.py

Turn = dict[str, Any]
"""A turn of the manifest."""


def pair_again(records: list[dict[str, Any]], times: int, seed: int) -> list[dict[str, Any]]:
    """Returns new records of the train split, up to `times - 1` for each, in which other people ask.

    Args:
        records: Lines of the manifest. Those of the branches `dialogue` and `multi_turn` whose turns hold one question
            or one answer each are paired again.
        times: Number of questions per answer, including its own.
        seed: Seed of the choice of questions.

    Returns:
        The new records only. Each question is replaced by one of the same meaning and feeling in another clip, each in
        a dialogue by a person of its own; the answers stay, and the pauses before them. There are fewer records where
        too few people ask the same.
    """
    train = [record for record in records if record["split"] == "train" and _is_paired(record)]
    asked: dict[tuple[Any, ...], dict[tuple[str, float], Turn]] = defaultdict(dict)
    for record in train:
        for turn in record["turns"]:
            if turn["role"] == "initiator":
                asked[_meaning(turn)].setdefault((turn["clip"], turn.get("start", 0.0)), turn)
    rng = np.random.default_rng((seed, _PAIRING))
    again = []
    for record in train:
        answerer = record["turns"][-1]["speaker"]
        others = {
            place: [other for other in asked[_meaning(turn)].values() if _may_ask(other, turn, answerer)]
            for place, turn in enumerate(record["turns"])
            if turn["role"] == "initiator"
        }
        chosen = {place: rng.permutation(len(turns))[: times - 1] for place, turns in others.items()}
        for n in range(min(map(len, chosen.values()))):
            questions = {place: others[place][index[n]] for place, index in chosen.items()}
            again.append({**record, "id": f"{record['id']}_{n + 1}", "turns": _replaced(record["turns"], questions)})
    return again


def _is_paired(record: dict[str, Any]) -> bool:
    return record["branch"] in ("dialogue", "multi_turn") and all("topic" in turn["truth"] for turn in record["turns"])


def _meaning(question: Turn) -> tuple[Any, ...]:
    """Returns what decides the right answer; a follow-up can be asked about any topic."""
    truth = question["truth"]
    topic = truth["topic"] if truth.get("kind", "topic") == "topic" else None
    return topic, truth["expression"], len(truth.get("phrases", ())), truth.get("interrupts", False)


def _may_ask(other: Turn, own: Turn, answerer: str) -> bool:
    return other["clip"] != own["clip"] and other["speaker"] != answerer


def _replaced(turns: list[Turn], questions: dict[int, Turn]) -> list[Turn]:
    """Returns the turns with other questions; what follows a longer question starts that much later."""
    result, later = [], 0.0
    for place, turn in enumerate(turns):
        new = questions.get(place, turn)
        result.append({**new, "at": round(turn["at"] + later, 6)} if "at" in turn else new)
        later += _seconds(new) - _seconds(turn) if "at" in turn else 0.0
    return result


def _seconds(turn: Turn) -> float:
    return turn["end"] - turn["start"]
