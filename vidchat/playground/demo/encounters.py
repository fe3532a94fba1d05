"""Whole encounters as dialogues: every question and answer, which the data set holds only in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vidchat.data.folder import inside
from vidchat.dialogue import Clip, Dialogue, Split, Turn
from vidchat.playground.people.script import TOPICS


def read_encounters(root: Path, split: Split = "test") -> list[Dialogue]:
    """Reads the encounters of a rendered folder as dialogues: question, answer, question, ...

    The truth of each turn is what `questions` reads: kind, topic, expression, interruptions, phrases and voice.
    """
    entries = [json.loads(line) for line in (root / "encounters.jsonl").read_text().splitlines()]
    return [_dialogue(root, entry) for entry in entries if entry["split"] == split]


def _dialogue(root: Path, entry: dict[str, Any]) -> Dialogue:
    fps, zero = entry["fps"], entry["turns"][0]["first"]
    meanings = _meanings(entry["turns"])
    turns = []
    for turn in entry["turns"]:
        person, start, end = entry["people"][turn["person"]], turn["first"] / fps, (turn["last"] + 1) / fps
        phrases = [[begin - start, stop - start] for begin, stop in person["phrases"] if start <= begin < end]
        truth = meanings[turn["exchange"]] | {
            "voice": person["voice"],
            "expression": turn["expression"],
            "interrupted": turn["interrupted"],
            "phrases": phrases,
        }
        clip = Clip(inside(root, person["clip"]), person["speaker"], turn["text"], start, end, truth=truth)
        turns.append(Turn(person["role"], clip, (turn["first"] - zero) / fps))
    return Dialogue(entry["id"], tuple(turns), "multi_turn", split=entry["split"])


def _meanings(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what each exchange is about; a follow-up is about the topic that was named last."""
    meanings: list[dict[str, Any]] = []
    for question, before in zip(turns[::2], [None, *turns[1::2]], strict=False):
        named = next((topic for topic in TOPICS if topic in question["text"].split()), None)
        meanings.append(
            {
                "kind": "topic" if named else "more",
                "topic": named or meanings[-1]["topic"],
                "interrupts": before is not None and before["interrupted"],
            }
        )
    return meanings
