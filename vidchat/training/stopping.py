"""Stops a run on SIGTERM or SIGINT (Ctrl+C), sent to one rank or to all, at any moment."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_STOP = 1.0  # seconds


class StopSignals:
    """Turns signals into a stop between two optimizer steps and, outside training, into the end of the process.

    During training a signal is only recorded in `received`, and the run ends after the current step. Schedulers and
    launchers often send a signal twice, so a repetition within a second is ignored; a later signal ends the run at
    once. The process then exits with code 128 + signal, as it does outside training: before the first step and during
    the export. A `with` block handles signals from its start on; `begin_training` handles them in any case.

    Attributes:
        received: Signal that ends the run, or `None`.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._time = 0.0
        self._forward: Callable[[int], None] | None = None
        self._training = False
        self._outside: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._outside = self._handle()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._outside.items():
            signal.signal(number, handler)

    def begin_training(self, forward: Callable[[int], None] | None = None) -> None:
        """Records signals from now on; `forward` passes SIGTERM on to the processes that this one started."""
        self._forward, self._training = forward, True
        self._handle()  # Lightning's handler would stop between two micro-batches of a step; it restores the former one

    def end_training(self) -> None:
        """Lets signals end the process from now on."""
        self._training = False

    def _handle(self) -> dict[signal.Signals, Any]:
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._stop) for number in _SIGNALS}

    def _stop(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and time.monotonic() - self._time > _SAME_STOP
        if not self._training or again:
            log.warning("ended by %s", signal.Signals(number).name)
            raise SystemExit(128 + number)
        if self.received is None:
            self.received, self._time = signal.Signals(number), time.monotonic()
            if self._forward is not None and number == signal.SIGTERM:
                self._forward(number)


class Agreement:
    """Makes the ranks agree on the signal that ends them, one optimizer step late, so that none waits for another.

    The signals are reduced on the CPU while a step is computed, and read a step later; no rank waits for its device. A
    single process agrees with itself at once.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._number = torch.zeros((), dtype=torch.int64)
        self._work: Any = None

    def begin(self) -> None:
        """Creates the process group; every rank must call it before the first step."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")

    def exchange(self, number: int) -> int:
        """Sends this rank's signal (0 for none) to the others, and returns the agreed signal of the step before."""
        if self._group is None:
            return number
        agreed = self.end()
        self._number = torch.tensor(number)
        self._work = dist.all_reduce(self._number, dist.ReduceOp.MAX, self._group, async_op=True)
        return agreed

    def end(self) -> int:
        """Waits for the pending exchange; returns the agreed signal, 0 for none."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._number)
