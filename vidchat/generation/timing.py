"""Speed of generation, as the benchmark reports it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vidchat.generation.talk import Step


@dataclass
class Timing:
    """Speed of the generation of answers.

    Attributes:
        ready: Time at which each chunk was decoded, in seconds since the question was heard; while it is heard, the
            watch stands still.
        chunk: Duration of a chunk in seconds.
    """

    ready: list[float] = field(default_factory=list)
    chunk: float = 0.0

    @property
    def first_chunk(self) -> float:
        """Seconds until the first chunk was decoded."""
        return self.ready[0] if self.ready else 0.0

    @property
    def total(self) -> float:
        """Seconds until all chunks were decoded."""
        return self.ready[-1] if self.ready else 0.0

    @property
    def duration(self) -> float:
        """Duration of the answer in seconds."""
        return self.chunk * len(self.ready)

    @property
    def real_time_factor(self) -> float:
        """Seconds of computation per second of answer; below 1 is faster than real time."""
        return self.total / max(self.duration, 1e-9)

    def log(self) -> dict[str, Any]:
        """Returns the generator's log, in the JSON format of docs/reference/bench.md."""
        chunks = [{"ready_s": round(ready, 4), "media_s": self.chunk} for ready in self.ready]
        return {
            "chunks": chunks,
            "first_chunk_s": round(self.first_chunk, 4),
            "real_time_factor": round(self.real_time_factor, 4),
        }


def timed(steps: Iterable[Step], timing: Timing) -> Iterator[Step]:
    """Yields steps, and fills in the timing."""
    start = time.perf_counter()
    for step in steps:
        if step.said is not None:
            timing.ready.append(time.perf_counter() - start)
        yield step
        if step.said is None:
            start = time.perf_counter() - timing.total
