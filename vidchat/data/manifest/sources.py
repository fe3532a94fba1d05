"""A user's own dialogues as rows of the manifest: a folder data set, a CSV table, or media files alone."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.progress import track

from vidchat.data.folder import MANIFESTS, FolderError, entries, make_dialogue, manifest_of, parse_entry
from vidchat.data.manifest.manifest_file import COLUMNS, SCORES, as_table, sorted_rows, write_manifest
from vidchat.data.media.read import header_of
from vidchat.dialogue import Clip, Dialogue
from vidchat.runtime.atomic import write_text

TABLE = "dialogues.csv"
TEXTS = (
    *("dialogue", "turn", "role", "speaker", "clip", "text", "caption", "at", "start", "end"),
    *("split", "branch", "tier"),
)
Headers = dict[Path, tuple[float, int, int]]  # seconds, height and width of each file
MEDIA = (".mp4", ".mkv", ".webm", ".mov", ".avi")


def ingest_folder(root: Path, output: Path) -> dict[str, Any]:
    """Writes the manifest of a folder's clips, a row per turn, and a report of what was left out.

    The folder holds `dialogues.jsonl`, `.json`, `.parquet` or `.csv`, or else only media files, each of which is then
    a clip and names its speaker.

    Raises:
        FolderError: The folder does not exist or holds nothing usable.
    """
    clips: list[dict[str, Any]] = []
    damage: list[dict[str, Any]] = []
    headers: Headers = {}
    seen: set[str] = set()
    for position, entry in track(list(_entries(root)), "reading dialogues"):
        try:
            parsed = parse_entry(entry)
            dialogue = make_dialogue(root, parsed)
            if dialogue.id in seen:
                raise ValueError(f"the id '{dialogue.id}' was used before; give every dialogue its own")
            clips += _rows(root, dialogue, parsed, headers)
            seen.add(dialogue.id)
        except (ValueError, TypeError, OSError) as error:
            damage.append({"kind": "dialogue", "file": position, "record": "", "reason": str(error)})
    if not clips:
        why = f" (the first: {damage[0]['file']}: {damage[0]['reason']})" if damage else ""
        raise FolderError(f"{root}: holds no usable dialogue{why}")
    report = write_report(output, clips, damage)
    write_manifest(output, [as_table(sorted_rows(clips))])
    return report


def write_report(output: Path, clips: list[dict[str, Any]], damage: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the report and the list of damaged records beside a manifest; returns the report."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output.with_suffix(".damaged.jsonl"), "".join(json.dumps(line) + "\n" for line in damage))
    reasons = Counter(line["reason"].split(":")[0] if len(line["reason"]) < 60 else line["kind"] for line in damage)
    report = {
        "clips": len(clips),
        "hours": round(sum(clip["duration_s"] for clip in clips) / 3600, 3),
        "left_out": dict(sorted(reasons.items())),
        "clips_without_score": {name: sum(clip.get(name) is None for clip in clips) for name in SCORES},
    }
    write_text(output.with_suffix(".report.json"), json.dumps(report, indent=1) + "\n")
    return report


def _entries(root: Path) -> Iterator[tuple[str, Any]]:
    if any((root / name).is_file() for name in MANIFESTS):
        yield from entries(manifest_of(root))
    elif (root / TABLE).is_file():
        yield from _table(root / TABLE)
    elif root.is_dir():
        for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in MEDIA):
            name = path.relative_to(root).as_posix()
            turn = {"role": "responder", "speaker": name.rpartition(".")[0], "clip": name}
            yield name, {"id": name, "branch": "single", "turns": [turn]}
    else:
        raise FolderError(f"{root}: there is no such folder; give the folder with the dialogues")


def _table(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the dialogues of a CSV file as entries; a row is a turn, and every other column a score."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        lacking = {"dialogue", "role", "speaker", "clip"} - set(reader.fieldnames or ())
        if lacking:
            raise FolderError(
                f"{path}: has no column '{sorted(lacking)[0]}'; its columns are {', '.join(TEXTS)} and scores"
            )
        dialogues: dict[str, list[dict[str, str]]] = {}
        for row in _csv_rows(reader, path):
            dialogues.setdefault(row["dialogue"], []).append({k: v for k, v in row.items() if k and isinstance(v, str)})
    for name, turns in dialogues.items():
        yield f"{path.name}, dialogue {name}", _entry(name, turns)


def _csv_rows(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows; raises `FolderError` at one that cannot be parsed, such as one with an unclosed quote."""
    try:
        yield from reader
    except csv.Error as error:
        raise FolderError(f"{path} line {reader.line_num}: is not a valid CSV row ({error}); correct it") from None


def _entry(name: str, turns: list[dict[str, str]]) -> Any:
    try:
        turns.sort(key=lambda turn: float(turn.get("turn") or 0))
        words = {key: turns[0][key] for key in ("split", "branch", "tier") if turns[0].get(key)}
        return {"id": name, **words, "turns": [_turn(turn) for turn in turns]}
    except ValueError as error:  # the text is refused where the entry is parsed
        return f"not a number: {error}"


def _turn(turn: dict[str, str]) -> dict[str, Any]:
    entry: dict[str, Any] = {key: turn[key] for key in ("role", "clip", "text", "caption") if turn.get(key)}
    entry["speaker"] = turn.get("speaker")  # empty is unknown
    entry |= {key: float(turn[key]) for key in ("at", "start", "end") if turn.get(key)}
    return {**entry, "scores": {key: float(value) for key, value in turn.items() if key not in TEXTS and value.strip()}}


def _rows(root: Path, dialogue: Dialogue, entry: Any, headers: Headers) -> list[dict[str, Any]]:
    given = {f"given_{key}": entry.get(key) for key in ("branch", "tier", "split")}
    clips = []
    for k, turn in enumerate(dialogue.turns):
        position = {"dialogue": dialogue.id, "turn": k, "role": turn.role, "at_s": turn.start}
        name = {"clip": f"{_file_name(dialogue.id)}_{k}", "source": "folder", "video": dialogue.id}
        clips.append({**name, **position, **given, **_clip(root, turn.clip, headers)})
    return clips


def _clip(root: Path, clip: Clip, headers: Headers) -> dict[str, Any]:
    if clip.path not in headers:
        headers[clip.path] = header_of(clip.path)
    seconds, height, width = headers[clip.path]
    end = seconds if clip.end is None else clip.end
    if end <= clip.start:
        raise ValueError(f"the clip '{clip.path.name}' lasts {seconds:g} s but should begin at {clip.start:g} s")
    own = {name: value for name, value in clip.scores.items() if name in SCORES and name in COLUMNS}
    more = {name: value for name, value in clip.scores.items() if name not in own}
    return {
        "media": clip.path.relative_to(root).as_posix(),
        "speaker": clip.speaker,
        "start_s": clip.start,
        "end_s": end,
        "duration_s": end - clip.start,
        "width": width,
        "height": height,
        "text": clip.text,
        "words": None if clip.text is None else len(clip.text.split()),
        "timed_words": [{"text": w.text, "start_s": w.start, "end_s": w.end} for w in clip.words] or None,
        "caption": clip.caption,
        **own,
        "more_scores": json.dumps(more) if more else None,
        "truth": json.dumps(clip.truth) if clip.truth else None,
    }


def _file_name(name: str) -> str:
    """Returns a file name for a dialogue's id; different ids give different names."""
    quoted = quote(name, safe=" ,+=@~")
    if len(quoted) > 180:
        quoted = quoted[:120] + hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted
