"""Rows of numbers, kept by column: what a list of objects holds, in a twentieth of its memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np


class Columns:
    """Columns that grow a row at a time. Python reads one number of an `array` faster than one of a NumPy array.

    Args:
        types: Each column's name, and its type as `array.array` calls it: "i" is 32 bits, "q" 64, "Q" 64 unsigned.
    """

    def __init__(self, **types: str) -> None:
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in types.items()}

    def add(self, *values: float) -> None:
        """Appends a row."""
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def extend(self, **values: Iterable[float] | np.ndarray) -> None:
        """Appends a row for each of n values of every column."""
        for name, column in self._columns.items():
            some = values[name]
            if isinstance(some, np.ndarray):
                column.frombytes(some.astype(column.typecode).tobytes())
            else:
                column.extend(some)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, name: str) -> array[Any]:
        return self._columns[name]

    def row(self, number: int) -> list[Any]:
        """The values of a row, in the columns' order."""
        return [column[number] for column in self._columns.values()]

    def view(self, name: str) -> np.ndarray:
        """(n,) a column, not copied. As long as the view lives, no row can be added."""
        column = self._columns[name]
        return np.frombuffer(column, column.typecode)

    def taken(self, order: np.ndarray) -> Columns:
        """These rows, in this order."""
        found = Columns(**{name: column.typecode for name, column in self._columns.items()})
        for name in self._columns:
            found._columns[name].frombytes(self.view(name)[order].tobytes())
        return found
