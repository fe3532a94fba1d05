"""Checkpoints that a run can be stopped and resumed with, exactly, and the choice of the one to resume from."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from vidchat.runtime.finite import not_finite
from vidchat.training.checkpoint_file import CheckpointError, CheckpointFiles, damage_of
from vidchat.training.checkpoint_file import read_checkpoint as read_checkpoint
from vidchat.training.stopping import Agreement, StopSignals

log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d+)\.ckpt")


class Checkpoints(L.Callback):
    """Writes `step_NNNNNNNN.ckpt` at an interval of optimizer steps, at the end, and when a signal stops the run.

    A checkpoint is taken only between optimizer steps, after the validation of its step if there is one, and only if
    the weights are finite. It is written in the background; older ones are removed after it was read back from the
    disk without an error.

    Args:
        directory: Folder of the checkpoints.
        every: Optimizer steps between checkpoints.
        keep: Number of the newest checkpoints to keep.
        config: Resolved config of the run, stored with the weights; `init_from` and `resume` compare it.
        signals: Signals that stop the run, see `StopSignals`.
    """

    def __init__(
        self,
        directory: str | Path,
        every: int,
        keep: int = 2,
        config: dict[str, Any] | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        if every < 1 or keep < 1:
            raise CheckpointError(f"checkpoints.every and checkpoints.keep must be at least 1, got {every} and {keep}")
        self.directory, self.every, self.keep, self.config = Path(directory), every, keep, config or {}
        self.signals = signals or StopSignals()
        self.files = CheckpointFiles(self.directory, self._prune)
        self._agreement = Agreement()
        self._saved = -1
        self._progress: dict[str, Any] | None = None  # state of the loops while a validation is awaited

    @property
    def stopped(self) -> signal.Signals | None:
        """Signal that ended the run, on this rank or another, or `None`."""
        return self.signals.received

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.files.mmap = trainer.strategy.root_device.type != "cpu"  # on the CPU, weights would stay mapped for good
        trainer.strategy.checkpoint_io = self.files
        # Lightning asks every rank at every micro-batch whether rank 0 got a SIGTERM, and waits for the device to know.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = trainer.global_step  # a resumed run's checkpoint exists already
        launcher = trainer.strategy.launcher
        self._agreement.begin()
        self.signals.begin_training(None if launcher is None else launcher.kill)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self.files.check()
        stop = self._agreement.exchange(self.signals.received or 0)
        if stop:
            self.signals.received = signal.Signals(stop)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # or Lightning would validate once more on the way out
        last = trainer.global_step >= trainer.max_steps
        if self._saved != trainer.global_step and (stop or last or trainer.global_step % self.every == 0):
            if _validation_follows(trainer):
                self._progress = trainer.fit_loop.state_dict()
            else:
                self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the checkpoint due at this step; a run that resumes from it does not validate again."""
        if self._progress is not None:
            pl_module.on_validation_end()  # restores the network's own weights; Lightning calls this after callbacks
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._agreement.end()
        self.files.wait()
        self.signals.end_training()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.signals.end_training()
        try:
            self.files.wait()
        except Exception as error:
            log.error("the last checkpoint could not be written: %s", error)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config
        if self._progress is not None:  # as before the validation, so that all checkpoints are alike
            checkpoint["loops"]["fit_loop"], self._progress = self._progress, None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets the next step have all its micro-batches if their number per step has changed."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        rest = progress["ready"] % trainer.accumulate_grad_batches
        progress.update({name: value - rest for name, value in progress.items()})

    def save(self, trainer: L.Trainer) -> Path:
        """Begins to write a checkpoint of the present state; every rank must call it.

        Raises:
            CheckpointError: the weights are not finite; existing checkpoints are kept.
        """
        path = self.directory / f"step_{trainer.global_step:08d}.ckpt"
        damage = not_finite(_weights(trainer.lightning_module))
        if damage is not None:
            raise CheckpointError(
                f"at step {trainer.global_step} {damage}, so no checkpoint is written; the one before in "
                f"{self.directory} is good: go on from it with a lower learning rate"
            )
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = trainer.global_step
        return path

    def _prune(self, written: Path) -> None:
        """Removes all but the newest of the checkpoints that are not newer than the one just written."""
        not_newer = [path for path in newest_first(self.directory) if step_of(path) <= step_of(written)]
        for old in not_newer[self.keep :]:
            old.unlink()


def find_checkpoint(resume: str | None, directory: Path) -> Path | None:
    """Returns the checkpoint to resume from, verified; `None` for a fresh start.

    Args:
        resume: `auto` for the newest good one in `directory`, if there is one; damaged newer ones are set aside under
            another name. `None` for a fresh start, or a path.
        directory: Folder of the run's checkpoints.

    Raises:
        CheckpointError: the file that `resume` names does not exist or is damaged, or all in `directory` are damaged.
    """
    if resume is None:
        return None
    if resume == "auto":
        return _newest_good(directory)
    path = Path(resume)
    if not path.exists():
        raise CheckpointError(f"resume={resume} does not exist; use resume=auto for the newest in {directory}")
    if (damage := damage_of(path)) is not None:
        raise CheckpointError(f"resume={resume} is damaged ({damage}); use resume=auto for the newest in {directory}")
    return path


def _newest_good(directory: Path) -> Path | None:
    damaged: dict[Path, str] = {}
    for path in newest_first(directory):
        damage = damage_of(path)
        if damage is None:
            for bad, reason in damaged.items():
                _set_aside(bad, reason, path)
            return path
        damaged[path] = damage
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise CheckpointError(
            f"{newest} is damaged ({reason}), and no other checkpoint in {directory} is good; restore one, or start "
            "afresh with resume=null"
        )
    return None


def _set_aside(bad: Path, reason: str, good: Path) -> None:
    log.warning("%s is damaged (%s); it is set aside as %s.damaged, and %s is used", bad, reason, bad.name, good.name)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        bad.rename(bad.with_name(f"{bad.name}.damaged"))


def newest_first(directory: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the latest step first."""
    return sorted((path for path in directory.glob("*.ckpt") if _NAME.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Returns the number of optimizer steps before a checkpoint, from its name; -1 for another name."""
    match = _NAME.fullmatch(path.name)
    return -1 if match is None else int(match[1])


def _weights(module: L.LightningModule) -> dict[str, Tensor]:
    ema = getattr(module, "ema", None)
    averages = {} if ema is None else {f"the average of {name}": value for name, value in ema.average.items()}
    return module.state_dict() | averages


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after this step; `False` where each rank decides by its own clock."""
    loop = trainer.fit_loop
    clock = getattr(trainer, "_val_check_time_interval", None) is not None
    if clock or loop._data_fetcher is None or loop.epoch_loop.val_loop.skip:
        return False
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _nothing() -> None:
    pass
