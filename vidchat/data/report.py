"""Counts of what was read of a data set, and the entries that were skipped."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vidchat.runtime.atomic import write_text


@dataclass
class Report:
    """Number of entries read, and the entries skipped.

    Attributes:
        what: Name of the entries that are counted, in the plural.
        read: Number of entries read.
        skipped: (position, reason) of each skipped entry.
    """

    what: str
    read: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.read} {self.what} read, {len(self.skipped)} skipped"
        lines = "\n".join([head, *(f"  {where}: {why}" for where, why in self.skipped)])
        return lines.encode("utf-8", "backslashreplace").decode()  # file names may hold bytes that are not UTF-8

    def write(self, path: Path) -> None:
        """Writes the report as text, replacing an older one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{self}\n")
