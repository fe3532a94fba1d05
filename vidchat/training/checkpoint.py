"""Checkpoints that a run can be stopped and resumed by, exactly.

A checkpoint is written only between optimizer steps, under a temporary name that is then renamed, so that what bears a
checkpoint's name is whole. It holds tensors and plain types only and is read with `weights_only=True`.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

log = logging.getLogger(__name__)
_NAME = re.compile(r"step_(\d+)\.ckpt")


class CheckpointError(ValueError):
    """A checkpoint that is absent, unreadable, or of something else than what is asked for."""


class Checkpoints(L.Callback):
    """Writes `step_NNNNNNNN.ckpt` every so many optimizer steps, at the end, and when asked to stop.

    SIGTERM and SIGINT (Ctrl+C) end the run after the optimizer step under way, with a checkpoint; a second signal ends
    it at once, without.

    Args:
        directory: Where checkpoints go.
        every: Optimizer steps between checkpoints.
        keep: How many of the newest to keep.
        config: The run's resolved config, kept with the weights: `init_from` and `resume` compare it.

    Attributes:
        stopped: The signal that ended the run, or `None`.
    """

    def __init__(self, directory: str | Path, every: int, keep: int = 2, config: dict[str, Any] | None = None) -> None:
        if every < 1 or keep < 1:
            raise CheckpointError(f"checkpoints.every and checkpoints.keep must be at least 1, got {every} and {keep}")
        self.directory, self.every, self.keep, self.config = Path(directory), every, keep, config or {}
        self.stopped: signal.Signals | None = None
        self._saved = -1
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved = trainer.global_step  # a resumed run's checkpoint exists already

        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = signal.Signals(number)
            signal.signal(number, self._handlers[self.stopped])
            launcher = trainer.strategy.launcher
            if launcher is not None and self.stopped is signal.SIGTERM:
                launcher.kill(number)  # pass it on to the other ranks that this process started

        # Lightning registers its own handler before this hook; it would stop between two micro-batches of a step.
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        stop = trainer.strategy.reduce_boolean_decision(self.stopped is not None, all=False)
        if stop:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # or Lightning would validate once more on the way out
        last = trainer.global_step >= trainer.max_steps
        if self._saved != trainer.global_step and (stop or last or trainer.global_step % self.every == 0):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._release_signals()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release_signals()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config

    def save(self, trainer: L.Trainer) -> Path:
        """Writes a checkpoint now; every rank must call it."""
        path = self.directory / f"step_{trainer.global_step:08d}.ckpt"
        unfinished = path.with_name(f".{path.name}.tmp")
        self.directory.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            _remove(path)
            os.replace(unfinished, path)
            for old in _newest_first(self.directory)[self.keep :]:
                _remove(old)
        self._saved = trainer.global_step
        return path

    def _release_signals(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def find_checkpoint(resume: str | None, directory: Path) -> Path | None:
    """Which checkpoint a run continues: `auto` is the newest in `directory` if there is one, `None` is a fresh start.

    Raises:
        CheckpointError: `resume` names something that does not exist.
    """
    if resume is None:
        return None
    if resume == "auto":
        return next(iter(_newest_first(directory)), None)
    path = Path(resume)
    if not path.exists():
        raise CheckpointError(f"resume={resume} does not exist; use resume=auto for the newest in {directory}")
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `Checkpoints` on the CPU.

    Raises:
        CheckpointError: it cannot be read, or something else wrote it.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({_first_line(error)}); give a step_*.ckpt that train.py wrote"
        ) from error
    if not isinstance(checkpoint, dict) or "ema" not in checkpoint or "config" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of train.py (it holds no EMA or config); give a step_*.ckpt")
    return checkpoint


def _newest_first(directory: Path) -> list[Path]:
    found = [(int(match[1]), path) for path in directory.glob("*.ckpt") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _remove(path: Path) -> None:
    if path.is_dir():  # a sharded checkpoint
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
