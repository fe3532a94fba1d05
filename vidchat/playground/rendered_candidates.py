"""Candidate replies to rendered dyads, with exact worths, in words and in the responder's own voice.

A responder has to understand a topic (heard) and a feeling (seen and heard), so the worth of a reply is known: 1.0 for
both, 0.8 for the topic alone, 0.6 for the feeling alone, 0.4 for neither, and 0.2 for the question repeated.
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
    """Returns a pair's candidates as a line of `candidates.jsonl`, and writes their audio to `candidates/`.

    Raises:
        ValueError: The pair does not come from a rendered dyad.
        SpeechError: espeak-ng is missing.
    """
    truth = pair.truth.truth
    if not {"topic", "expression", "voice"} <= truth.keys():
        raise ValueError(f"{pair.id} is not a rendered dyad, so its candidates are not known; use --model")
    right, voice = Case(truth["topic"], truth["expression"]), Voice(**truth["voice"])
    question = pair.initiator.text or right.question(0)
    replies = [(case.answer, case.expression) for case in _ranked(right)] + [(question, right.expression)]
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
