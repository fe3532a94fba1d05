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
from vidchat.dialogue import Branch, Clip, Dialogue, Role, Split, Tier, TimedText, Turn

MANIFESTS = ("dialogues.jsonl", "dialogues.json", "dialogues.parquet")
EXAMPLE = (
    '{"id": "d1", "split": "train", "turns": [{"role": "initiator", "speaker": "ann", "clip": "clips/1.mp4"}, '
    '{"role": "responder", "speaker": "bob", "clip": "clips/2.mp4"}]}'
)
ROLES = get_args(Role)
LATEST = 1_000_000  # seconds at which a turn may start, eleven days: a number of steps that positions can tell apart
WORDS = {"split": get_args(Split), "branch": get_args(Branch), "tier": get_args(Tier)}


class FolderError(ValueError):
    """A folder that cannot be read as a data set; the message says what to do."""


def manifest_of(root: Path) -> Path:
    """Returns the manifest of a folder, which lists its dialogues; raises `FolderError` if there is none."""
    if not root.is_dir():
        raise FolderError(f"{root}: there is no such data folder; set data.root to a folder with a {MANIFESTS[0]}")
    manifest = next((root / name for name in MANIFESTS if (root / name).is_file()), None)
    if manifest is None:
        raise FolderError(f"{root}: has no {MANIFESTS[0]}; write one dialogue per line, such as {EXAMPLE}")
    return manifest


def usable(root: Path, report: Report, media: bool = True) -> Iterator[tuple[Any, Dialogue]]:
    """Yields the usable entries of a folder's manifest with their dialogues, in the manifest's order.

    An unusable entry (invalid JSON, an unknown word, an invalid number, a file that is missing or outside the folder)
    is skipped and reported. A speaker that is null or empty is unknown: a person of their own in each span of each
    file. A clip's path is relative to the folder; absolute paths and `..` are refused, as the manifest is not trusted.
    A symbolic link inside the folder may point anywhere.

    Args:
        root: Data folder.
        report: Report, to which the entries read and skipped are added.
        media: Whether the clips' files must exist; tokens or media shards may replace them.

    Raises:
        FolderError: The folder or its manifest does not exist, or the manifest holds no usable dialogue.
    """
    manifest, ids = manifest_of(root), _Ids()
    for position, entry in entries(manifest):
        try:
            dialogue = make_dialogue(root, parse_entry(entry), media)
            if not ids.add(dialogue.id):
                raise ValueError(f"the id '{dialogue.id}' was used before; give every dialogue its own id")
        except (ValueError, TypeError, OSError) as error:
            report.skipped.append((position, str(error)))
            continue
        report.read += 1
        yield entry, dialogue
    if not report.read:
        why = f" (the first: {report.skipped[0][0]}: {report.skipped[0][1]})" if report.skipped else ""
        raise FolderError(f"{manifest}: holds no usable dialogue{why}; write lines such as {EXAMPLE}")


class _Ids:
    """Set of ids as 64-bit digests, 8 bytes each in a sorted array; the newest are in a small set."""

    def __init__(self, most: int = 1 << 18) -> None:
        self._most, self._new, self._sorted = most, set[int](), array("Q")

    def add(self, name: str) -> bool:
        """Adds an id; returns whether it is new."""
        digest = xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
        index = bisect_left(self._sorted, digest)
        if digest in self._new or self._sorted[index : index + 1] == array("Q", [digest]):
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
    """Returns the dialogues of a folder data set, without the report of `read_folder`."""
    return read_folder(root)[0]


def inside(root: Path, name: str, media: bool = True) -> Path:
    """Returns the path of a file that a manifest names; it must be inside the folder and, for `media`, exist.

    Raises:
        ValueError: The name is absolute, leaves the folder, or names no file.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"'clip' must be a path relative to the folder, not {name!r:.80}")
    _unicode(name, "clip")
    if "\0" in name:
        raise ValueError(f"the clip {name!r:.200} holds a null character, which no path may hold; correct it")
    if name.startswith("/") or ".." in name.split("/") or "\\" in name:
        raise ValueError(f"the clip {name!r:.200} lies outside the folder; use a path inside it")
    path = root / name
    try:
        exists = not media or path.is_file()
    except OSError as error:  # the name is too long
        raise ValueError(f"the clip {name!r:.200} cannot be looked up: {error.strerror}") from None
    if not exists:
        raise ValueError(f"the clip {name!r:.200} does not exist; add the file or remove the dialogue")
    return path


def parse_entry(entry: Any) -> Any:
    """Parses an entry that is JSON text; raises `ValueError`."""
    if not isinstance(entry, str):
        return entry
    try:
        return _parse_json(entry)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}; write each dialogue as JSON on one line") from None


def _parse_json(text: str) -> Any:
    """Parses JSON without NaN and Infinity; raises `ValueError`."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("is nested too deeply; a dialogue is an object with 'id' and a list of 'turns'") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number; leave the key out, or write null")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def entries(manifest: Path) -> Iterator[tuple[str, Any]]:
    """Yields (position, entry); an entry is a line of text, an element of a list, or a row."""
    if manifest.suffix == ".parquet":
        yield from _table_rows(manifest)
        return
    if manifest.suffix == ".jsonl":
        with manifest.open(encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield f"{manifest.name} line {number}", text
        return
    text = manifest.read_text(encoding="utf-8-sig", errors="replace")
    try:
        elements = _parse_json(text)
    except ValueError as error:
        raise FolderError(
            f"{manifest}: is not JSON ({error}); it must be a list of objects such as {EXAMPLE}"
        ) from None
    if not isinstance(elements, list):
        raise FolderError(f"{manifest}: must be a list of objects such as {EXAMPLE}")
    for number, entry in enumerate(elements, 1):
        yield f"{manifest.name} entry {number}", entry


def _table_rows(manifest: Path) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a Parquet manifest: `id`, `branch`, `tier`, `split`, and the turns as JSON."""
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
    """Returns a row as an entry, or the error text if its turns are not JSON, which parsing then refuses."""
    entry = {key: value for key, value in row.items() if value is not None}
    if isinstance(row.get("turns"), str):
        try:
            entry["turns"] = _parse_json(row["turns"])
        except ValueError as error:
            return f"the turns are not JSON: {error}"
    return entry


def make_dialogue(root: Path, entry: Any, media: bool = True) -> Dialogue:
    """Returns an entry as a dialogue; its clips must be below `root` and, for `media`, exist.

    Raises:
        ValueError, TypeError, OSError: The entry is not a valid dialogue.
    """
    if not isinstance(entry, dict) or "id" not in entry or not isinstance(entry.get("turns"), list):
        raise ValueError("a dialogue is an object with 'id' and a list of 'turns'")
    words = {key: _word(entry, key, allowed) for key, allowed in WORDS.items() if key in entry}
    together = 0.0 if words.get("branch") == "listening" else None  # who listens does so from the talker's first word
    turns = tuple(_turn(root, turn, media, together) for turn in entry["turns"])
    return Dialogue(_name(entry["id"], "id"), turns, **words)


def _name(value: Any, key: str) -> str:
    """Returns a name, given as text or number; raises `ValueError` if it is neither or not valid Unicode."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"'{key}' must be a name, not {value!r:.80}")
    return _unicode(str(value), key)


def _unicode(text: str, key: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{key}' holds half of a character: {text!a:.80}") from None
    return text


def _word(entry: dict[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    if entry.get(key) not in allowed:
        raise ValueError(f"'{key}' must be one of {', '.join(allowed)}, not {_short(entry.get(key))}")
    return entry[key]


def _turn(root: Path, turn: Any, media: bool, start: float | None) -> Turn:
    """Returns a turn; `start` is where it starts on the dialogue's clock if the entry does not say."""
    if not isinstance(turn, dict) or not {"role", "speaker", "clip"} <= turn.keys():
        raise ValueError("a turn is an object with 'role', 'speaker' and 'clip'")
    if turn.get("at") is not None:
        start = _number(turn["at"], must := f"'at' must be seconds on the dialogue's clock, from 0 to {LATEST}")
        if not 0 <= start <= LATEST:
            raise ValueError(f"{must}, not {_short(turn['at'])}")
    return Turn(_word(turn, "role", ROLES), _clip(root, turn, media), start)


def _clip(root: Path, turn: dict[str, Any], media: bool) -> Clip:
    scores, truth = turn.get("scores"), turn.get("truth")
    if not isinstance(scores, dict | None) or not isinstance(truth, dict | None):
        raise ValueError("a turn's 'scores' and 'truth' must be objects")
    path = inside(root, turn["clip"], media)
    start = _number(turn.get("start", 0.0), "'start' must be seconds")
    end = None if turn.get("end") is None else _number(turn["end"], "'end' must be seconds")
    return Clip(
        path=path,
        speaker=_speaker(turn, start, end),
        text=_text(turn, "text"),
        start=start,
        end=end,
        scores={
            name: _number(value, f"the score '{name}' must be a number")
            for name, value in (scores or {}).items()
            if value is not None
        },
        truth=truth or {},
        words=_timed_text(turn.get("words")),
        caption=_text(turn, "caption"),
    )


def _text(turn: dict[str, Any], key: str) -> str | None:
    text = turn.get(key)
    if not isinstance(text, str | None):
        raise ValueError(f"a turn's '{key}' must be a string, not {_short(text)}")
    return None if text is None else _unicode(text, key)


def _timed_text(words: Any) -> tuple[TimedText, ...]:
    """Returns the words of a transcript with their times."""
    must = "a turn's 'words' must be a list of [text, start, end], in seconds from the clip's start"
    if not isinstance(words, list | None):
        raise ValueError(f"{must}, not {_short(words)}")
    timed = []
    for word in words or ():
        if not isinstance(word, list) or len(word) != 3 or not isinstance(word[0], str):
            raise ValueError(f"{must}, not of {_short(word)}")
        start, end = _number(word[1], must), _number(word[2], must)
        if end < start:
            raise ValueError(f"{must}; {_short(word)} ends before it starts")
        timed.append(TimedText(_unicode(word[0], "words"), start, end))
    return tuple(timed)


def _speaker(turn: dict[str, Any], start: float, end: float | None) -> str:
    """Returns the name of the person seen; an unknown person is named after the span of the file."""
    if turn["speaker"] in (None, ""):
        return f"unknown person of {turn['clip']} {start:g}-{'end' if end is None else f'{end:g}'}"
    return _name(turn["speaker"], "speaker")


def _number(value: Any, must: str) -> float:
    """Returns a finite number; raises `ValueError`."""
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
