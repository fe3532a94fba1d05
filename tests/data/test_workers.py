from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from vidchat.data.workers import parallel_map
from vidchat.runtime.atomic import write_text


def power(base: int, exponent: int) -> int:
    return base**exponent


def record_pid_and_wait(item: int, folder: str) -> None:
    (Path(folder) / f"{item}.pid").write_text(str(os.getpid()))
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_its_result(workers: int) -> None:
    items = iter(range(30))
    assert sorted(parallel_map(partial(power, exponent=2), items, workers)) == [k * k for k in range(30)]


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys; from functools import partial; from test_workers import record_pid_and_wait\n"
        "from vidchat.data.workers import parallel_map\n"
        "if __name__ == '__main__': list(parallel_map(partial(record_pid_and_wait, folder=sys.argv[1]), range(2), 2))\n"
    )
    (tmp_path / "run.py").write_text(script)
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parents[1]}"}
    parent = subprocess.Popen([sys.executable, str(tmp_path / "run.py"), str(tmp_path)], env=environment)
    assert _within(60, lambda: len([p for p in tmp_path.glob("*.pid") if p.read_text()]) == 2)
    workers = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert _within(20, lambda: not any(_runs(worker) for worker in workers))


def _within(seconds: float, condition: object) -> bool:
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_write_text_replaces_a_file_and_leaves_no_partial_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "{}")
    write_text(tmp_path / "a.json", "[]")
    assert (tmp_path / "a.json").read_text() == "[]"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
