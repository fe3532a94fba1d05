"""Exact candidates for rendered dyads, in words and spoken by the responder's own voice.

What there is to understand is a topic (heard) and a feeling (seen and heard), so the worth of a reply is known:
all of it 1.0; the topic alone 0.8; the feeling alone 0.6; neither 0.4; the question said back 0.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile

from vidchat.bench.pairs import Pair
from vidchat.playground.people.script import FEELINGS, TOPICS, Case
from vidchat.playground.people.speaker_voice import Voice, speak

RATE = 16000


def rendered_candidates(pair: Pair, folder: Path) -> Mapping[str, Any]:
    """The candidates of one pair as a line of `candidates.jsonl`; their sounds go to `candidates/`.

    Raises:
        ValueError: The pair is not of a rendered dyad.
        SpeechError: espeak-ng is missing.
    """
    truth = pair.truth.truth
    if not {"topic", "expression", "voice"} <= truth.keys():
        raise ValueError(f"{pair.id}: is not a rendered dyad, so its candidates are not known; use --model")
    right, voice = Case(truth["topic"], truth["expression"]), Voice(**truth["voice"])
    asked = pair.initiator.text or right.question(0)
    replies = [(case.answer, case.expression) for case in _ranked(right)] + [(asked, right.expression)]
    (folder / "candidates").mkdir(parents=True, exist_ok=True)
    candidates = []
    for rank, (text, feeling) in enumerate(replies):
        audio = folder / "candidates" / f"{pair.id}_{rank}.wav"
        spoken = speak(text, voice.feeling(feeling), RATE).waveform
        wavfile.write(audio, RATE, np.round(np.clip(spoken, -1, 1) * 32767).astype(np.int16))
        worth = round(1.0 - 0.2 * rank, 1)
        candidates.append({"text": text, "worth": worth, "sounds": [f"candidates/{audio.name}"]})
    return {"id": pair.id, "made_by": "the renderer's script", "candidates": candidates}


def _ranked(right: Case) -> list[Case]:
    other_topic = TOPICS[(TOPICS.index(right.topic) + 1) % len(TOPICS)]
    other_feeling = FEELINGS[(FEELINGS.index(right.expression) + 1) % len(FEELINGS)]
    return [
        right,
        Case(right.topic, other_feeling),
        Case(other_topic, right.expression),
        Case(other_topic, other_feeling),
    ]
