"""What was left out of a data set, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vidchat.runtime.atomic import write_text


@dataclass
class Report:
    """What was read, and what was skipped.

    Attributes:
        what: The things that are counted.
        read: How many were read.
        skipped: (where, why) of each one left out.
    """

    what: str
    read: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.read} {self.what} read, {len(self.skipped)} skipped"
        lines = "\n".join([head, *(f"  {where}: {why}" for where, why in self.skipped)])
        return lines.encode("utf-8", "backslashreplace").decode()  # names of files may hold bytes that are no text

    def write(self, path: Path) -> None:
        """Writes the report as text, replacing an older one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"{self}\n")
