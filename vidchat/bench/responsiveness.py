"""Latency and speed of a system, from its generator's log. docs/reference/bench.md has the format."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from vidchat.bench.metric import Column

COLUMNS = (Column("first chunk s", "lower"), Column("real-time factor", "lower"), Column("slowest chunk", "lower"))


def log_path(clip: Path) -> Path:
    """Returns the path of a generated clip's log: the same name with `.json`."""
    return clip.with_suffix(".json")


def read_log(path: Path) -> tuple[dict[str, float], str]:
    """Reads the columns that a clip's log states, and returns a note if it is damaged or contradicts itself.

    If the log has times of chunks, all columns are computed from them: the first chunk's `ready_s`, the last chunk's
    over the length of the media, and the longest wait for a chunk over its length (above 1, a live stream would have
    stopped).
    """
    if not path.is_file():
        return {}, ""
    try:
        log = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(log, dict):
            raise ValueError("it must be an object")
        totals = {name: _positive(log[key]) for name, key in _LOG_KEYS.items() if key in log}
        if "chunks" not in log:
            return totals, ""
        computed = _from_chunks([(_positive(c["ready_s"]), _positive(c["media_s"])) for c in log["chunks"]])
    except (json.JSONDecodeError, RecursionError) as error:
        return {}, f"its log cannot be read (it is not JSON: {error})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        what = f"a chunk lacks {error}" if isinstance(error, KeyError) else error
        return {}, f"its log cannot be read ({what})"
    wrong = [
        name for name, value in totals.items() if not math.isclose(value, computed[name], rel_tol=0.1, abs_tol=0.01)
    ]
    return computed, f"its log states another {wrong[0]} than its chunks' times" if wrong else ""


def log_value(path: Path, key: str) -> str | None:
    """Reads one string of a clip's log: its `protocol`, or the hash of the `pair` that it answers."""
    try:
        log = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None  # `read_log` reports what is wrong
    value = log.get(key) if isinstance(log, dict) else None
    return value if isinstance(value, str) else None


_LOG_KEYS = {"first chunk s": "first_chunk_s", "real-time factor": "real_time_factor"}


def _from_chunks(chunks: list[tuple[float, float]]) -> dict[str, float]:
    ready, media = zip(*chunks, strict=True)
    waits = [after - before for before, after in pairwise(ready)]
    if any(wait < 0 for wait in waits):
        raise ValueError("'ready_s' must not decrease")
    if min(media) <= 0:
        raise ValueError("'media_s' must be more than 0")
    slowest = max((wait / length for wait, length in zip(waits, media[1:], strict=True)), default=ready[0] / media[0])
    return {"first chunk s": ready[0], "real-time factor": ready[-1] / sum(media), "slowest chunk": slowest}


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a number of seconds")
    return float(value)
