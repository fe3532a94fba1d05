"""More dialogues from the same clips: an answer is right for every question with the same topic and feeling.

A model that sees each answer with one question only can memorise the pairs. Several questions to an answer, by other
people and in other words, share nothing but their meaning.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

_PAIRING = 4  # beside the kinds of generators in cast.py


def pair_again(records: list[dict[str, Any]], times: int, seed: int) -> list[dict[str, Any]]:
    """Returns new records of the train split, up to `times - 1` for each answer, with questions by other people.

    Args:
        records: Lines of the manifest, each with a question and its answer.
        times: Number of questions per answer, including its own.
        seed: Seed of the choice of questions.

    Returns:
        The new records only. The question of each has the same case (topic and expression) as the answer and another
        speaker. There are fewer records where a case has too few speakers.
    """
    train = [record for record in records if record["split"] == "train"]
    asked = defaultdict(list)
    for record in train:
        asked[_case(record)].append(record["turns"][0])
    rng = np.random.default_rng((seed, _PAIRING))
    again = []
    for record in train:
        own, answer = record["turns"]
        others = [q for q in asked[_case(record)] if q["clip"] != own["clip"] and q["speaker"] != answer["speaker"]]
        for n, index in enumerate(rng.permutation(len(others))[: times - 1], 1):
            again.append({**record, "id": f"{record['id']}_{n}", "turns": [others[index], answer]})
    return again


def _case(record: dict[str, Any]) -> tuple[str, str]:
    truth = record["turns"][1]["truth"]
    return truth["topic"], truth["expression"]
