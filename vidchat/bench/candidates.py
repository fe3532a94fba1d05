"""Five replies of falling worth to every question, the true answer and four that a language model writes; cached."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from vidchat.bench.canonical.coherence import loaded
from vidchat.bench.pairs import CANDIDATES, Pair, write_lines
from vidchat.bench.protocol import text_hash, weights_hash
from vidchat.data.report import Report

WORTHS = (1.0, 0.8, 0.6, 0.4, 0.2)
TRIES = 3  # a reply that cannot be read is asked for again, with another seed
PROMPT = """Two people talk. One says: "{question}"
The other answered: "{answer}"
Write four other answers, each clearly worse than the one before:
1. about as good as the true answer, in other words or with another detail
2. on the topic, but only partly an answer
3. on a neighbouring topic, missing the point
4. about something else altogether
Each is one sentence, about as long as the true answer. Write nothing but four lines that begin with 1. 2. 3. 4."""

Write = Callable[[str, int], str]
"""Prompt and seed to text."""


class Writer:
    """A language model of transformers that follows instructions.

    Args:
        name: A folder, or a name on the Hub, such as `Qwen/Qwen3-4B-Instruct-2507`.
        device: Where it runs.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = loaded(name, AutoModelForCausalLM).to(device).eval()
        self.tokens: Any = loaded(name, AutoTokenizer)
        self.device = device
        self.told = f"{name.rstrip('/').rsplit('/', 1)[-1]} {weights_hash(self.model)}"

    @torch.no_grad()
    def __call__(self, prompt: str, seed: int) -> str:
        """What the model says; the first try takes its likeliest words, later ones draw."""
        given = self._tokens(prompt).to(self.device)
        torch.manual_seed(seed)
        drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.95} if seed else {"do_sample": False}
        said = self.model.generate(**given, max_new_tokens=256, **drawn)
        return str(self.tokens.decode(said[0, given["input_ids"].shape[1] :], skip_special_tokens=True))

    def _tokens(self, prompt: str) -> Any:
        if self.tokens.chat_template:
            message = [{"role": "user", "content": prompt}]
            return self.tokens.apply_chat_template(
                message, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        return self.tokens(prompt, return_tensors="pt")


def write_candidates(folder: Path, pairs: Sequence[Pair], write: Write, told: str) -> Report:
    """Writes `candidates.jsonl` into a benchmark folder; pairs that this writer has answered before are kept.

    Args:
        folder: Folder of the benchmark.
        pairs: Pairs of the benchmark.
        write: Writer of the replies.
        told: Name of the writer, which is recorded with every line.
    """
    made_by = f"{told}, prompt {text_hash([PROMPT])}"
    lines = {line["id"]: line for line in _before(folder / CANDIDATES) if line.get("made_by") == made_by}
    report = Report("pairs with candidates")
    for pair in track(pairs, "candidates"):
        if pair.id not in lines:
            try:
                lines[pair.id] = {"id": pair.id, "made_by": made_by, "candidates": _ask(pair, write)}
            except ValueError as error:
                report.skipped.append((pair.id, str(error)))
        write_lines(folder / CANDIDATES, [lines[one.id] for one in pairs if one.id in lines])
    report.read = len(lines)
    return report


def _ask(pair: Pair, write: Write) -> list[dict[str, Any]]:
    question, answer = pair.initiator.text, pair.truth.text
    if not question or not answer:
        raise ValueError("its words are not known; put 'text' into both turns")
    prompt = PROMPT.format(question=question, answer=answer)
    for seed in range(TRIES):
        replies = read_replies(write(prompt, seed))
        if replies and answer.strip().lower() not in (reply.lower() for reply in replies):
            texts = [answer, *replies]
            return [{"text": text, "worth": worth} for text, worth in zip(texts, WORTHS, strict=True)]
    raise ValueError(f"the model gave no four different answers in {TRIES} tries")


def read_replies(text: str) -> list[str] | None:
    """The four replies of a model's text, or `None` if they are not four different ones."""
    found = re.findall(r"^\s*([1-4])[.):]\s*(.+?)\s*$", text, re.MULTILINE)
    replies = [reply.strip('"“” ') for _, reply in found]
    whole = [number for number, _ in found] == ["1", "2", "3", "4"] and all(replies)
    return replies if whole and len({reply.lower() for reply in replies}) == 4 else None


def _before(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    return [line for line in lines if isinstance(line, dict) and "id" in line]
