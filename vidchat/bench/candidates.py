"""Writes five candidate replies per question: the true answer and four worse ones by a language model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from vidchat.bench.canonical.coherence import load_pretrained
from vidchat.bench.pairs import CANDIDATES, Pair, write_lines
from vidchat.bench.protocol import text_hash, weights_hash
from vidchat.data.report import Report

SCORES = (1.0, 0.8, 0.6, 0.4, 0.2)
TRIES = 3  # attempts per question, each with its own seed
PROMPT = """Two people talk. One says: "{question}"
The other answered: "{answer}"
Write four other answers, each clearly worse than the one before:
1. about as good as the true answer, in other words or with another detail
2. on the topic, but only partly an answer
3. on a neighbouring topic, missing the point
4. about something else altogether
Each is one sentence, about as long as the true answer. Write nothing but four lines that begin with 1. 2. 3. 4."""

Write = Callable[[str, int], str]
"""Function from a prompt and a seed to a text."""


class ReplyWriter:
    """An instruction-tuned language model of transformers.

    Args:
        name: Folder, or name on the Hub, such as `Qwen/Qwen3-4B-Instruct-2507`.
        device: Device of the model.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = load_pretrained(name, AutoModelForCausalLM).to(device).eval()
        self.tokenizer: Any = load_pretrained(name, AutoTokenizer)
        self.device = device
        self.name = f"{name.rstrip('/').rsplit('/', 1)[-1]} {weights_hash(self.model)}"

    @torch.no_grad()
    def __call__(self, prompt: str, seed: int) -> str:
        """Generates a reply: greedily with seed 0, by sampling with any other seed."""
        inputs = self._encode(prompt).to(self.device)
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": 0.8, "top_p": 0.95} if seed else {"do_sample": False}
        output = self.model.generate(**inputs, max_new_tokens=256, **sampling)
        return str(self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def _encode(self, prompt: str) -> Any:
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            return self.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        return self.tokenizer(prompt, return_tensors="pt")


def write_candidates(folder: Path, pairs: Sequence[Pair], write: Write, writer: str) -> Report:
    """Writes `candidates.jsonl` into a benchmark folder, and keeps the replies that the same writer wrote before.

    Args:
        folder: Folder of the benchmark.
        pairs: Pairs of the benchmark.
        write: Function that writes the replies.
        writer: Name of the writer, which is recorded on every line.
    """
    made_by = f"{writer}, prompt {text_hash([PROMPT])}"
    lines = {line["id"]: line for line in _read_existing(folder / CANDIDATES) if line.get("made_by") == made_by}
    report = Report("pairs with candidates")
    for pair in track(pairs, "candidates"):
        if pair.id not in lines:
            try:
                lines[pair.id] = {"id": pair.id, "made_by": made_by, "candidates": _generate_replies(pair, write)}
            except ValueError as error:
                report.skipped.append((pair.id, str(error)))
        write_lines(folder / CANDIDATES, [lines[done.id] for done in pairs if done.id in lines])
    report.read = len(lines)
    return report


def _generate_replies(pair: Pair, write: Write) -> list[dict[str, Any]]:
    question, answer = pair.initiator.text, pair.truth.text
    if not question or not answer:
        raise ValueError("its words are missing; put 'text' into both turns")
    prompt = PROMPT.format(question=question, answer=answer)
    for seed in range(TRIES):
        replies = read_replies(write(prompt, seed))
        if replies and answer.strip().lower() not in (reply.lower() for reply in replies):
            texts = [answer, *replies]
            return [{"text": text, "worth": score} for text, score in zip(texts, SCORES, strict=True)]
    raise ValueError(f"the model wrote no four different answers in {TRIES} tries")


def read_replies(text: str) -> list[str] | None:
    """Parses four numbered replies; returns `None` if there are not four different ones."""
    matches = re.findall(r"^\s*([1-4])[.):]\s*(.+?)\s*$", text, re.MULTILINE)
    replies = [reply.strip('"“” ') for _, reply in matches]
    complete = [number for number, _ in matches] == ["1", "2", "3", "4"] and all(replies)
    return replies if complete and len({reply.lower() for reply in replies}) == 4 else None


def _read_existing(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    return [line for line in lines if isinstance(line, dict) and "id" in line]
