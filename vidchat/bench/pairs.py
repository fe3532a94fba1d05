"""The benchmark's pairs: a folder with `pairs.jsonl`, perhaps `candidates.jsonl`, and the files they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidchat.bench.protocol import text_hash
from vidchat.data.folder import inside
from vidchat.dialogue import Clip

PAIRS, CANDIDATES = "pairs.jsonl", "candidates.jsonl"
PLAIN = re.compile(r"[\w\-][\w\-. ]*")  # ids name files, so nothing else may stand in them


class PairsError(ValueError):
    """A benchmark folder that cannot be read, and what to do about it, in one sentence."""


@dataclass(frozen=True)
class Candidate:
    """One reply that could be given.

    Attributes:
        text: Its words.
        worth: What a reply nearest to this one scores, 0.2 ... 1.0.
        sounds: Files in which it is spoken, if any; for measures without a recogniser.
    """

    text: str
    worth: float
    sounds: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Pair:
    """One question of the benchmark.

    Attributes:
        id: Names the generated clip's file.
        initiator: The clip that is to be answered.
        truth: The true answer; what is scored begins at its `start`, one picture after the reference.
        reference: The responder's picture.
        candidates: Replies of different worth, best first; empty if none were made.
        branch: Of the dialogue that it was made of; in `listening` the true answer says nothing.
    """

    id: str
    initiator: Clip
    truth: Clip
    reference: Path
    candidates: tuple[Candidate, ...] = ()
    branch: str = "dialogue"


def read_pairs(folder: Path) -> list[Pair]:
    """Reads a benchmark folder as `vidchat bench make` writes it.

    Raises:
        PairsError: There is no such folder, or a line of it is bad.
    """
    folder = Path(folder)
    if not (folder / PAIRS).is_file():
        raise PairsError(f"{folder}: has no {PAIRS}; make one by `vidchat bench make`")
    candidates = _read_candidates(folder)
    pairs: dict[str, Pair] = {}
    for where, entry in _lines(folder / PAIRS):
        try:
            pair = _pair(folder, entry, candidates)
        except (ValueError, KeyError, TypeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else error
            raise PairsError(f"{where}: {what}") from None
        if pair.id in pairs:
            raise PairsError(f"{where}: the id '{pair.id}' was used before")
        pairs[pair.id] = pair
    if not pairs:
        raise PairsError(f"{folder / PAIRS}: is empty")
    return list(pairs.values())


def write_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines; the file appears whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    partial.replace(path)


def pairs_hash(pairs: Sequence[Pair]) -> str:
    """Tells one set of pairs from another: ids and texts, in order."""
    return text_hash(f"{pair.id}|{pair.truth.text}" for pair in pairs)


def candidates_hash(pairs: Sequence[Pair]) -> str:
    """Tells one set of candidate replies from another."""
    return text_hash(f"{pair.id}|{one.worth:g}|{one.text}" for pair in pairs for one in pair.candidates)


def check_id(name: str) -> str:
    """The id, if it can name a file in any folder."""
    if not isinstance(name, str) or not PLAIN.fullmatch(name):
        raise ValueError(f"the id {name!r} cannot name a file; use letters, digits, '-', '_', '.'")
    return name


def _pair(folder: Path, entry: Any, candidates: Mapping[str, tuple[Candidate, ...]]) -> Pair:
    name = check_id(entry["id"])
    return Pair(
        id=name,
        initiator=_clip(folder, entry["initiator"]),
        truth=_clip(folder, entry["truth"]),
        reference=inside(folder, entry["reference"]),
        candidates=candidates.get(name, ()),
        branch=str(entry.get("branch", "dialogue")),
    )


def _clip(folder: Path, entry: Any) -> Clip:
    start, end = float(entry.get("start", 0.0)), entry.get("end")
    return Clip(
        path=inside(folder, entry["clip"]),
        speaker=str(entry["speaker"]),
        text=entry.get("text"),
        start=start,
        end=None if end is None else float(end),
        truth=entry.get("truth") or {},
    )


def _read_candidates(folder: Path) -> dict[str, tuple[Candidate, ...]]:
    if not (folder / CANDIDATES).is_file():
        return {}
    found = {}
    for where, entry in _lines(folder / CANDIDATES):
        try:
            found[str(entry["id"])] = tuple(
                Candidate(
                    str(one["text"]), float(one["worth"]), tuple(inside(folder, name) for name in one.get("sounds", ()))
                )
                for one in entry["candidates"]
            )
        except (ValueError, KeyError, TypeError) as error:
            raise PairsError(
                f"{where}: {error!r} in the candidates; make them anew by `vidchat bench candidates`"
            ) from None
    return found


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise PairsError(f"{path} line {number}: is not JSON ({error})") from None
