"""A run that stops and resumes is, bit for bit, the run that never stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from tests.faults.test_kills import same
from tests.training.fakes import NoisyModule, Recorder, StreamModule, make_trainer
from vidchat.training import checkpoint
from vidchat.training.checkpoint import find_checkpoint, read_checkpoint
from vidchat.training.metrics import MetricsFile, read_metrics


def run(directory: Path, steps: int, recorder: Recorder, resume: bool = False, **kwargs: Any) -> NoisyModule:
    module = NoisyModule(seed=7)
    trainer = make_trainer(directory, steps, [recorder], logger=MetricsFile(directory), **kwargs)
    path = find_checkpoint("auto", directory / "checkpoints") if resume else None
    assert not resume or path is not None
    torch.manual_seed(len(str(directory)))  # whatever the state of the generators, it must not matter
    trainer.fit(module, datamodule=StreamModule(), ckpt_path=path, weights_only=True)
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stopped_by", ["last step", "SIGTERM", "SIGINT"])
def test_resumed_run_equals_the_one_that_never_stopped(tmp_path: Path, accumulate: int, stopped_by: str) -> None:
    options = {"accumulate_grad_batches": accumulate}
    whole, first, second = Recorder(), Recorder(), Recorder()
    straight = run(tmp_path / "straight", 12, whole, **options)
    if stopped_by != "last step":
        # In the middle of an accumulated step when there is one: the checkpoint waits for its end.
        first = Recorder(at=6 * accumulate + 1, then=lambda: os.kill(os.getpid(), getattr(signal, stopped_by)))
    run(tmp_path / "stopped", 7 if stopped_by == "last step" else 12, first, **options)
    resumed = run(tmp_path / "stopped", 12, second, resume=True, **options)

    assert len(whole.losses) == 12 * accumulate
    assert len(first.losses) == 7 * accumulate
    assert first.losses + second.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(value, resumed.ema.average[name]) for name, value in straight.ema.average.items())
    assert straight.ema.updates == resumed.ema.updates == 12
    stopped, unbroken = (read_metrics(tmp_path / name / "metrics.csv") for name in ("stopped", "straight"))
    assert stopped == unbroken


def test_a_crash_loses_only_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    def crash() -> None:
        raise ZeroDivisionError

    whole, second = Recorder(), Recorder()
    run(tmp_path / "straight", 9, whole)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "crashed", 9, Recorder(at=6, then=crash), every=4)
    run(tmp_path / "crashed", 9, second, resume=True)
    assert second.losses == whole.losses[4:]
    # The rows of steps 5 and 6, logged before the crash, are replaced and not doubled.
    names = ("crashed", "straight")
    crashed, unbroken = (read_metrics(tmp_path / name / "metrics.csv")["train/loss"] for name in names)
    assert crashed == unbroken


def test_a_crash_in_a_validation_costs_no_validation(tmp_path: Path) -> None:
    """A checkpoint of the same step comes after it, and holds the network's own weights, not their averages."""

    class Crash(Recorder):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.global_step == 8:
                raise ZeroDivisionError

    whole, first, second = Recorder(), Crash(), Recorder()
    run(tmp_path / "straight", 10, whole, every=2)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "crashed", 10, first, every=2)
    run(tmp_path / "crashed", 10, second, resume=True)
    assert second.losses == whole.losses[6:]
    assert first.validations + second.validations == whole.validations
    assert [step for step, _ in whole.validations] == [4, 8]
    crashed, unbroken = (read_metrics(tmp_path / name / "metrics.csv") for name in ("crashed", "straight"))
    assert crashed == unbroken


def test_a_checkpoint_after_a_validation_is_like_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "after", 4, Recorder())
    monkeypatch.setattr(checkpoint, "_validation_follows", lambda trainer: False)
    run(tmp_path / "before", 4, Recorder())
    after, before = (
        read_checkpoint(tmp_path / name / "checkpoints" / "step_00000004.ckpt") for name in ("after", "before")
    )
    assert same(after, before)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    """What the equalities above are worth: the loss depends on the randomness that they say is the same."""
    losses = []
    for seed in (0, 1):
        module, recorder = NoisyModule(seed=0), Recorder()
        module.seed = seed
        make_trainer(tmp_path / str(seed), 2, [recorder]).fit(module, datamodule=StreamModule())
        losses.append(recorder.losses)
    assert losses[0] != losses[1]
