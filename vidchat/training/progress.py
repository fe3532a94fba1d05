"""Progress of training: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar

from vidchat.batch import ChunkBatch

log = logging.getLogger(__name__)


class StepsBar(TQDMProgressBar):
    """Lightning's bar, counting to `max_steps`: the training stream has no epochs and no end."""

    @property
    def total_train_batches(self) -> int | float:
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("training")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class StepLines(L.Callback):
    """Logs a line every `every` optimizer steps: losses, speed and the remaining time."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._start = (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = (time.perf_counter(), trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step >= trainer.max_steps
        if trainer.fit_loop._should_accumulate() or not due or not trainer.is_global_zero:
            return
        start, first = self._start
        remaining = (time.perf_counter() - start) / max(1, step - first) * (trainer.max_steps - step)
        prefixes = ("train/", "val/", "speed/chunks")
        shown = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(prefixes)}
        values = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in shown.items())
        minutes, seconds = divmod(math.ceil(remaining), 60)
        log.info("step %d/%d  %s  left %d:%02d", step, trainer.max_steps, values, minutes, seconds)


def progress(every: int) -> L.Callback:
    """Returns a bar for a terminal, lines elsewhere."""
    return StepsBar(refresh_rate=1) if sys.stderr.isatty() else StepLines(every)


class Throughput(L.Callback):
    """Logs optimizer steps/s, chunks/s, and the share of the time spent waiting for data.

    Validation is not counted. It must be the last callback, or the work of others would count as waiting for data.
    """

    def __init__(self) -> None:
        self._chunks: torch.Tensor | int = 0
        self._wait = self._work = 0.0
        self._steps = 0
        self._ended: float | None = None
        self._began = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._began = time.perf_counter()
        if self._ended is not None:
            self._wait += self._began - self._ended

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, ChunkBatch):
            self._chunks = self._chunks + batch.targets.sum()
        self._ended = time.perf_counter()
        self._work += self._ended - self._began
        if trainer.fit_loop._should_accumulate():
            return
        self._steps += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        chunks = int(self._chunks) * trainer.world_size  # waits for the device, so the clock is read after it
        now = time.perf_counter()
        seconds = self._wait + self._work + (now - (self._ended or now))
        rates = {"speed/steps_per_s": self._steps / seconds, "speed/data_wait": self._wait / seconds}
        if chunks:
            rates["speed/chunks_per_s"] = chunks / seconds
        pl_module.log_dict(rates, batch_size=1)
        self._chunks, self._wait, self._work, self._steps, self._ended = 0, 0.0, 0.0, 0, now
