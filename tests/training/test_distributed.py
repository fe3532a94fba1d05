"""Two processes that train together are one process with their batches, step by step, in all five stages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.two_ranks import SAVED, STAGES, STEPS, run

REPOSITORY = Path(__file__).parents[2]


class Pair:
    """What both ranks saw, what one process saw, and how the ranks ended after rank 1 had died."""

    def __init__(self, directory: Path) -> None:
        ranks = [self._start(directory, rank, port=_free_port() if rank == 0 else None) for rank in (0, 1)]
        try:
            self.alone = {stage: run(stage, directory, 1) for stage in STAGES if stage != "pretrain_av"}
            unfinished, finished = directory / "unfinished.ckpt", directory / "alone.ckpt"
            self.alone["pretrain_av"] = run("pretrain_av", directory, 1, save=unfinished)
            unfinished.rename(finished)
            self.ended = [process.wait(timeout=300) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
        self.stderr = [(directory / f"stderr_{rank}.txt").read_text() for rank in (0, 1)]
        assert (directory / "rank_0.pt").is_file(), self.stderr[0]
        self.ranks = [torch.load(directory / f"rank_{rank}.pt") for rank in (0, 1)]
        self.resumed = run("pretrain_av", directory, 1, resume=directory / "pretrain_av_two.ckpt")
        self.seconds = float((directory / "survivor_0.txt").read_text())

    def _start(self, directory: Path, rank: int, port: int | None) -> subprocess.Popen[bytes]:
        self.port = port or self.port
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
            "NODE_RANK": "0", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.training.two_ranks", str(directory)]
        with (directory / f"stderr_{rank}.txt").open("w") as file:
            return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=file, stdout=file)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_are_equal_after_each_step(pair: Pair, stage: str) -> None:
    first, second = (rank[stage] for rank in pair.ranks)
    assert len(first["weights"]) == STEPS
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))
    assert torch.equal(first["end"], second["end"])
    assert all(first[name] == second[name] for name in ("loss", "norm", "val"))


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_are_one_process_with_their_batches(pair: Pair, stage: str) -> None:
    assert_same(pair.alone[stage], pair.ranks[0][stage])
    moved = pair.alone[stage]["weights"][-1] - pair.alone[stage]["weights"][0]
    assert moved.abs().max() > 1e-3  # far more than the tolerance


def test_a_run_goes_on_with_other_ranks(pair: Pair) -> None:
    rest = {name: values[SAVED:] for name, values in pair.alone["pretrain_av"].items() if isinstance(values, list)}
    whole = pair.alone["pretrain_av"] | rest
    assert_same(whole, pair.resumed)  # from two ranks to one
    assert_same(whole, pair.ranks[0]["resumed"])  # and from one to two


def test_a_rank_that_dies_ends_the_other_with_a_sentence(pair: Pair) -> None:
    assert pair.ended == [1, 17]
    assert "error: another rank" in pair.stderr[0]
    assert "Traceback" not in pair.stderr[0]
    assert pair.seconds < 60


def assert_same(expected: dict[str, Any], actual: dict[str, Any]) -> None:
    """Sums in another order: equal to some 1e-5, Adam's square roots making more of what is next to nothing."""
    for name in ("weights", "end", "loss", "norm", "val"):
        values, others = (
            torch.stack(seen[name]) if name == "weights" else torch.as_tensor(seen[name]) for seen in (expected, actual)
        )
        torch.testing.assert_close(others, values, rtol=1e-4, atol=1e-5, equal_nan=True)
