"""Sizes of the code by room, and how many files a reader passes from a training step to the losses.

python benchmarks/house.py
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vidchat.playground.demo.speed import random_batch
from vidchat.release import load_release
from vidchat.training.responder_module import ResponderModule
from vidchat.training.schedule import OptimizerSettings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vidchat"


def count_lines() -> dict[str, list[int]]:
    """Returns the lengths of the files of each room."""
    rooms: dict[str, list[int]] = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        room = "(top)" if len(parts) == 1 else parts[0]
        rooms.setdefault(room, []).append(len(path.read_text().splitlines()))
    return dict(sorted(rooms.items()))


def function_lengths() -> list[int]:
    """Returns the lengths of all functions, sorted."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    return sorted((node.end_lineno or 0) - node.lineno + 1 for node in nodes if isinstance(node, kinds))


def files_to(target: str) -> list[str]:
    """Returns the files on the call stack from a training step to the function that computes a loss.

    Args:
        target: The function as FILE:NAME, e.g. `model/flow.py:loss`.
    """
    release = load_release("checkpoints/demo")
    tokenizers = (release.video_vae, release.audio_codec, release.text_tokenizer)
    module = ResponderModule(release.responder, *tokenizers, OptimizerSettings(), seed=0)
    batch = random_batch(release)
    stacks: list[list[str]] = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and f"{relative(frame)}:{frame.f_code.co_name}" == target:
            stack: list[str] = []
            current: FrameType | None = frame
            while current is not None:
                stack.insert(0, relative(current))
                current = current.f_back
            files = [name for name in stack if name]
            stacks.append([name for n, name in enumerate(files) if n == 0 or name != files[n - 1]])

    sys.setprofile(watch)
    try:
        module.losses(batch)
    finally:
        sys.setprofile(None)
    return stacks[0]


def relative(frame: FrameType) -> str:
    """Returns a frame's file within the package; empty outside of it."""
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else ""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    rooms, functions = count_lines(), function_lengths()
    table = Table("room", "files", "lines", "median", "longest")
    for room, lengths in [*rooms.items(), ("all", [n for counts in rooms.values() for n in counts])]:
        table.add_row(room, *map(str, (len(lengths), sum(lengths), round(median(lengths)), max(lengths))))
    console = Console()
    console.print(table)
    p95, longest = functions[int(0.95 * len(functions))], functions[-1]
    middle = round(median(functions))
    console.print(f"{len(functions)} functions: median {middle} lines, 95 % at most {p95}, longest {longest}")
    for target in ("model/flow.py:loss", "model/depth.py:loss"):
        console.print(f"to {target}: {' -> '.join(files_to(target))}")
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))
    console.print(f"names of several files: {', '.join(sorted(name for name, count in names.items() if count > 1))}")


if __name__ == "__main__":
    main()
