"""A small model computes with one thread, a large one with all; what the environment says counts first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vidchat.runtime import threads

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("parameters", "count"), [(3_000_000, 1), (20_000_000, 1), (64_000_000, 4), (10**9, 8)])
def test_threads_follow_the_size(parameters: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", chosen.append)
    monkeypatch.setattr("torch.get_num_threads", lambda: chosen[-1] if chosen else 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    message = threads.choose_threads(parameters)
    assert chosen == [count]
    assert message.startswith(f"computing with {count} thread")
    assert "OMP_NUM_THREADS=N" in message
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.choose_threads(parameters).endswith("as OMP_NUM_THREADS says")
    assert chosen == [count]


def test_waiting_is_passive_before_torch_is_there() -> None:
    look = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        print(os.environ.get("OMP_WAIT_POLICY")) if name == "torch" else None
sys.meta_path.insert(0, Finder())
import vidchat.cli.infer, torch
"""
    clean = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, env=clean, check=True)
    assert set(done.stdout.split()) == {"PASSIVE"}


@pytest.mark.parametrize(
    "script",
    [*(f"vidchat/cli/{name}.py" for name in ("__init__", "train", "infer")), "vidchat/playground/demo/__main__.py"],
)
def test_every_command_begins_with_it(script: str) -> None:
    imports = [line for line in (ROOT / script).read_text().splitlines() if line.startswith(("import ", "from "))]
    first = ("import vidchat.runtime.threads", "from vidchat.runtime.threads")
    assert imports[1].startswith(first), "after __future__, before anything that imports torch"
