"""More dialogues from the clips of some: a right answer is right for everybody who asks the same in the same way.

Whoever meets each answer with one question only can learn the pairs by heart. With several questions to an answer, by
other people and in other words, what they have in common is what was meant.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

_PAIRING = 4  # beside the kinds of generators in cast.py


def pair_again(records: list[dict[str, Any]], times: int, seed: int) -> list[dict[str, Any]]:
    """The records of the train split once more, `times - 1` times, each answer with somebody else's question.

    Args:
        records: Lines of the manifest, as performed: a question and the answer to it.
        times: Questions to an answer, the performed one included.
        seed: Of the choice.

    Returns:
        The new records only. In each, the question is of the same case (topic and expression) as the answer, and asked
        by another person than the one who answers. Fewer where a case has not that many askers.
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
