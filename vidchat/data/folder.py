"""A folder data set: `dialogues.jsonl` (or `.json`, or `.parquet`) and the media files it names."""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xxhash

from vidchat.data.report import Report
from vidchat.dialogue import Branch, Clip, Dialogue, Role, Split, Tier, Turn

MANIFESTS = ("dialogues.jsonl", "dialogues.json", "dialogues.parquet")
EXAMPLE = (
    '{"id": "d1", "split": "train", "turns": [{"role": "initiator", "speaker": "ann", "clip": "clips/1.mp4"}, '
    '{"role": "responder", "speaker": "bob", "clip": "clips/2.mp4"}]}'
)
ROLES = get_args(Role)
WORDS = {"split": get_args(Split), "branch": get_args(Branch), "tier": get_args(Tier)}


class FolderError(ValueError):
    """A folder that cannot be read as a data set, and what to do about it, in one sentence."""


def manifest_of(root: Path) -> Path:
    """The file that names a folder's dialogues; raises `FolderError` if there is none."""
    if not root.is_dir():
        raise FolderError(f"{root}: there is no such data folder; set data.root to a folder with a {MANIFESTS[0]}")
    manifest = next((root / name for name in MANIFESTS if (root / name).is_file()), None)
    if manifest is None:
        raise FolderError(f"{root}: has no {MANIFESTS[0]}; write one dialogue a line into it, such as {EXAMPLE}")
    return manifest


def usable(root: Path, report: Report, media: bool = True) -> Iterator[tuple[Any, Dialogue]]:
    """Yields the usable entries of a folder's manifest, each with its dialogue, in the manifest's order.

    A bad entry (not JSON, a word that does not exist, a number that is none, a file that is missing or lies outside the
    folder) is skipped and reported; the others are kept. A speaker that is null or empty is unknown: nobody but who is
    seen in the same span of the same file. A clip's path is relative to the folder and may not leave it by `..` or by
    being absolute. A symbolic link inside the folder may point anywhere: whoever can place links there decides what the
    folder holds, whereas a manifest may come from a stranger.

    Args:
        root: The folder.
        report: The report, to which entries read and skipped are added.
        media: Whether the clips' files must be there; tokens and media shards can stand for them.

    Raises:
        FolderError: There is no folder, no manifest in it, or no usable dialogue in the manifest.
    """
    manifest, ids = manifest_of(root), _Ids()
    for where, entry in entries(manifest):
        try:
            dialogue = make_dialogue(root, parse_entry(entry), media)
            if not ids.add(dialogue.id):
                raise ValueError(f"the id '{dialogue.id}' was used before; give every dialogue its own")
        except (ValueError, TypeError, OSError) as error:
            report.skipped.append((where, str(error)))
            continue
        report.read += 1
        yield entry, dialogue
    if not report.read:
        why = f" (the first: {report.skipped[0][0]}: {report.skipped[0][1]})" if report.skipped else ""
        raise FolderError(f"{manifest}: holds no usable dialogue{why}; a line looks like {EXAMPLE}")


class _Ids:
    """Ids that were used, as digests of 64 bits: millions take 8 bytes each, and some in a set more."""

    def __init__(self, most: int = 1 << 18) -> None:
        self._most, self._new, self._sorted = most, set[int](), array("Q")

    def add(self, name: str) -> bool:
        """Adds an id; returns whether it is new."""
        digest = xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
        place = bisect_left(self._sorted, digest)
        if digest in self._new or self._sorted[place : place + 1] == array("Q", [digest]):
            return False
        self._new.add(digest)
        if len(self._new) > self._most:
            new = np.fromiter(self._new, np.uint64, len(self._new))
            self._sorted = array("Q", np.sort(np.append(np.array(self._sorted, np.uint64), new)).tobytes())
            self._new.clear()
        return True


def read_folder(root: Path | str, media: bool = True) -> tuple[list[Dialogue], Report]:
    """Reads all dialogues of a folder data set; see `usable`. `vidchat.data.loading.dialogues` opens large ones."""
    report = Report("dialogues")
    return [dialogue for _, dialogue in usable(Path(root), report, media)], report


def read_dialogues(root: Path | str) -> list[Dialogue]:
    """The dialogues of a folder data set, without the report of `read_folder`."""
    return read_folder(root)[0]


def inside(root: Path, name: str, media: bool = True) -> Path:
    """The path of a file that a manifest names, which must lie inside the folder (and, for `media`, be there).

    Raises:
        ValueError: The name is absolute, leaves the folder, or is of no file.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"'clip' must be a path relative to the folder, not {name!r:.80}")
    _unicode(name, "clip")
    if "\0" in name:
        raise ValueError(f"the clip {name!r:.200} holds a null character, which no path can; correct it")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise ValueError(f"the clip {name!r:.200} lies outside the folder; use a path inside it")
    path = root / name
    try:
        there = not media or path.is_file()
    except OSError as error:  # of a name that is too long
        raise ValueError(f"the clip {name!r:.200} cannot be looked for: {error.strerror}") from None
    if not there:
        raise ValueError(f"the clip {name!r:.200} does not exist; add the file or remove the dialogue")
    return path


def parse_entry(entry: Any) -> Any:
    """An entry as JSON; raises `ValueError`."""
    if not isinstance(entry, str):
        return entry
    try:
        return _parsed(entry)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}; a dialogue is written as JSON, the whole of it on one line") from None


def _parsed(text: str) -> Any:
    """JSON, in which NaN and Infinity are no numbers; raises `ValueError`."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("is nested too deeply; a dialogue is an object with 'id' and a list of 'turns'") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON; leave the key out, or write null")


_DECODER = json.JSONDecoder(parse_constant=_no_number)


def entries(manifest: Path) -> Iterator[tuple[str, Any]]:
    """(where, entry), the entry being a line of text, an element of a list or a row."""
    if manifest.suffix == ".parquet":
        yield from _table_rows(manifest)
        return
    if manifest.suffix == ".jsonl":
        with manifest.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if kept := line.strip():
                    yield f"{manifest.name} line {number}", kept
        return
    text = manifest.read_text(encoding="utf-8-sig", errors="replace")
    try:
        elements = _parsed(text)
    except ValueError as error:
        raise FolderError(
            f"{manifest}: is not JSON ({error}); it must be a list of objects such as {EXAMPLE}"
        ) from None
    if not isinstance(elements, list):
        raise FolderError(f"{manifest}: must be a list of objects such as {EXAMPLE}")
    for number, entry in enumerate(elements, 1):
        yield f"{manifest.name} entry {number}", entry


def _table_rows(manifest: Path) -> Iterator[tuple[str, Any]]:
    """Rows of `id`, `branch`, `tier`, `split` and the turns as JSON; a large data set is written so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(manifest) as file:
            for batch in file.iter_batches(batch_size=10_000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{manifest.name} row {number}", _row_entry(row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:200]
        raise FolderError(f"{manifest}: cannot be read ({why}); make it again with 'vidchat data branches'") from None


def _row_entry(row: dict[str, Any]) -> Any:
    """A row as an entry; one whose turns are not JSON is handed on as it is, to be refused where it is used."""
    entry = {key: value for key, value in row.items() if value is not None}
    if isinstance(row.get("turns"), str):
        try:
            entry["turns"] = _parsed(row["turns"])
        except ValueError as error:
            return f"the turns are not JSON: {error}"
    return entry


def make_dialogue(root: Path, entry: Any, media: bool = True) -> Dialogue:
    """An entry as a dialogue, its clips below `root` and, for `media`, there.

    Raises `ValueError`, `TypeError` or `OSError`.
    """
    if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("turns"), list):
        raise ValueError("a dialogue is an object with 'id' and a list of 'turns'")
    words = {key: _word(entry, key, allowed) for key, allowed in WORDS.items() if key in entry}
    return Dialogue(_name(entry["id"], "id"), tuple(_turn(root, turn, media) for turn in entry["turns"]), **words)


def _name(value: Any, key: str) -> str:
    """A name, written as text or as a number, that can be written as UTF-8."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"'{key}' must be a name, not {value!r:.80}")
    return _unicode(str(value), key)


def _unicode(text: str, key: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"'{key}' holds half of a character: {text!a:.80}") from None
    return text


def _word(entry: dict[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    if entry.get(key) not in allowed:
        raise ValueError(f"'{key}' must be one of {', '.join(allowed)}, not {_short(entry.get(key))}")
    return entry[key]


def _turn(root: Path, turn: Any, media: bool) -> Turn:
    if not isinstance(turn, dict) or not {"role", "speaker", "clip"} <= turn.keys():
        raise ValueError("a turn is an object with 'role', 'speaker' and 'clip'")
    text, scores, truth = (turn.get(key) for key in ("text", "scores", "truth"))
    if not isinstance(text, str | None) or not isinstance(scores, dict | None) or not isinstance(truth, dict | None):
        raise ValueError("a turn's 'text' must be a string, and its 'scores' and 'truth' objects")
    path = inside(root, turn["clip"], media)
    start = _number(turn.get("start", 0.0), "'start' must be seconds")
    end = None if turn.get("end") is None else _number(turn["end"], "'end' must be seconds")
    clip = Clip(
        path=path,
        speaker=_speaker(turn, start, end),
        text=None if text is None else _unicode(text, "text"),
        start=start,
        end=end,
        scores={
            name: _number(value, f"the score '{name}' must be a number")
            for name, value in (scores or {}).items()
            if value is not None
        },
        truth=truth or {},
    )
    return Turn(_word(turn, "role", ROLES), clip)


def _speaker(turn: dict[str, Any], start: float, end: float | None) -> str:
    """Who is seen. An unknown person is named after the span of the file, and so nobody else."""
    if turn["speaker"] in (None, ""):
        return f"unknown person of {turn['clip']} {start:g}-{'end' if end is None else f'{end:g}'}"
    return _name(turn["speaker"], "speaker")


def _number(value: Any, must: str) -> float:
    """A finite number; raises `ValueError`."""
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{must}, not {_short(value)}")
    return number


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 1 << 64:
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.80}"
