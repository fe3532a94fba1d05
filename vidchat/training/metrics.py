"""A file of all logged metrics that survives restarts: `metrics.csv` with rows `step,name,value`."""

from __future__ import annotations

import csv
import os
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_HEADER = ["step", "name", "value"]


class MetricsFile(Logger):
    """Appends to `metrics.csv`; a resumed run first drops the rows that it will write again.

    Args:
        directory: Folder of the file.
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.path = Path(directory) / "metrics.csv"
        self._started = False

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the config is already beside the file."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        step = step or 0
        if not self._started:
            self._start(step)
        rows = [[step, name, repr(float(value))] for name, value in metrics.items() if name != "epoch"]
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    def _start(self, step: int) -> None:
        rows = [row for row in _rows(self.path) if int(row[0]) < step] if self.path.is_file() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".tmp")
        with unfinished.open("w", newline="") as file:
            csv.writer(file).writerows([_HEADER, *rows])
        os.replace(unfinished, self.path)
        self._started = True


def read_metrics(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Reads a `metrics.csv`; returns (step, value) pairs by name, in the order logged."""
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for step, name, value in _rows(Path(path)):
        curves[name].append((int(step), float(value)))
    return dict(curves)


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if len(row) == 3 and row != _HEADER]
