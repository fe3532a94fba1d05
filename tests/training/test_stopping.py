"""Signals at any moment: a stop between two steps while training, else the end of the process; never code 0."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.training.fakes import NoisyModule, Recorder, StreamModule, make_trainer
from vidchat.training import stopping
from vidchat.training.checkpoint import Checkpoints, find_checkpoint
from vidchat.training.stopping import Agreement, StopSignals


def twice(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.02)


def fit(folder: Path, recorder: Recorder) -> tuple[L.Trainer, Checkpoints]:
    trainer = make_trainer(folder, 12, [recorder])
    checkpoints = trainer.callbacks[-1]
    assert isinstance(checkpoints, Checkpoints)
    trainer.fit(NoisyModule(), datamodule=StreamModule())
    return trainer, checkpoints


@pytest.mark.parametrize("numbers", [(15, 15), (2, 2), (15, 2, 15)])
def test_signals_that_come_together_are_one_stop_with_a_checkpoint(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    trainer, checkpoints = fit(tmp_path, Recorder(at=5, then=lambda: twice(*numbers)))
    assert checkpoints.stopped == numbers[0], "train.py ends with 128 + this"
    assert trainer.global_step == 5
    assert find_checkpoint("auto", tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step_00000005.ckpt"
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_later_second_signal_ends_the_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_SAME_STOP", 0.001)
    recorder = Recorder(at=5, then=lambda: twice(15, 15))
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, recorder)
    assert caught.value.code == 143
    assert len(recorder.losses) == 5
    assert find_checkpoint("auto", tmp_path / "checkpoints") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_outside_training_a_signal_ends_the_process_with_its_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)

    def stop(training: bool) -> None:
        with StopSignals() as signals:
            if training:
                signals.begin_training()
                os.kill(os.getpid(), number)
                assert signals.received == number
                signals.end_training()  # as before the export
            os.kill(os.getpid(), number)

    for training in (False, True):
        with pytest.raises(SystemExit) as caught:
            stop(training)
        assert caught.value.code == 128 + number
        assert signal.getsignal(number) == before


def test_a_signal_between_lightning_s_handlers_and_the_first_step_ends_the_run(tmp_path: Path) -> None:
    class Early(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = make_trainer(tmp_path, 12, [Early()])
    with StopSignals() as signals:
        trainer.callbacks[-1].signals = signals  # type: ignore[attr-defined]
        with pytest.raises(SystemExit) as caught:
            trainer.fit(NoisyModule(), datamodule=StreamModule())
    assert caught.value.code == 143


def test_sigterm_is_passed_on_to_the_other_ranks_and_only_once() -> None:
    passed: list[int] = []
    with StopSignals() as signals:
        signals.begin_training(passed.append)
        twice(15, 15)
    assert passed == [15]


def test_one_process_agrees_with_itself_without_a_group() -> None:
    agreement = Agreement()
    agreement.begin()
    assert [agreement.exchange(number) for number in (0, 15, 0)] == [0, 15, 0]
    assert agreement.end() == 0


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    agreement = Agreement()
    agreement.begin()
    given = [0, 0, 15 * rank, 0, 0]
    agreed = [agreement.exchange(number) for number in given]
    assert agreed == [0, 0, 0, 15, 0], "a step later, on both"
    agreement.end()
    dist.destroy_process_group()
    Path(folder, str(rank)).touch()


def test_two_ranks_agree_a_step_later(tmp_path: Path) -> None:
    mp.start_processes(_rank, (str(tmp_path),), nprocs=2, start_method="fork")
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


def test_nothing_is_reduced_or_broadcast_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    asked: list[Any] = []
    assert hasattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor"), "Lightning changed: look at Checkpoints.setup"
    trainer = make_trainer(tmp_path, 3, [])
    monkeypatch.setattr(trainer.strategy, "reduce_boolean_decision", lambda *args, **kwargs: asked.append(args))
    trainer.fit(NoisyModule(), datamodule=StreamModule())
    assert not asked
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor.__module__ == "vidchat.training.checkpoint"
