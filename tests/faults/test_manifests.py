"""Hostile manifests: a bad line is skipped and named, the lines around it are kept, whatever it holds."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.law import Case, judge
from tests.faults.mutations import damaged, damaged_json
from tests.faults.specimens import film
from vidchat.bench.make import make_from_folder
from vidchat.data.loading.dialogues import Dialogues
from vidchat.data.manifest.cut import dialogue_files
from vidchat.data.manifest.sources import ingest_folder
from vidchat.data.stats import dialogue_table


def entry(name: str, split: str = "train") -> dict[str, Any]:
    """A good dialogue."""
    told = {"text": "some words", "start": 0.0, "end": 0.36, "scores": {"dover": 0.5}, "truth": {"identity": 3}}
    turns = [
        {"role": role, "speaker": f"{role} {name}", "clip": f"{role}.mp4", **told}
        for role in ("initiator", "responder")
    ]
    return {"id": name, "split": split, "branch": "dialogue", "tier": "sft", "turns": turns}


FIRST, LAST = json.dumps(entry("first")), json.dumps(entry("last", "test"))


def _open(folder: Path) -> None:
    """Reads a manifest of a good line, a hostile one and a good one."""
    table = Dialogues(folder)
    report = table.report
    ids = [dialogue.id for dialogue in table]
    assert {"first", "last"} <= set(ids), f"a good line is lost; there are {ids}"
    assert len(table) + len(report.skipped) >= 2
    assert all("line 2" in where for where, _ in report.skipped), report.skipped
    for _, why in report.skipped:
        assert "\n" not in why, f"not one sentence: {why!r}"
        assert len(why) < 1000, f"{len(why)} letters in a report"
    str(report).encode()  # it can be printed
    for dialogue in table:
        for turn in dialogue.turns:
            turn.clip.path.relative_to(folder)
            f"{dialogue.id} {turn.clip.speaker} {turn.clip.text} {turn.clip.path}".encode()


USERS: dict[str, Callable[[Path], object]] = {
    "stats": dialogue_table,
    "ingest": lambda folder: ingest_folder(folder, folder / "out" / "clips.parquet"),
    "bench make": lambda folder: make_from_folder(folder, _fresh(folder)),
    "cut --only-dialogues": dialogue_files,
}


def _fresh(folder: Path) -> Path:
    bench = folder / "bench"
    (bench / "pairs.jsonl").unlink(missing_ok=True)
    return bench


def hostile_lines(folder: Path, count: int) -> Iterator[Case]:
    """Good lines with one strange value or damaged bytes, between two good ones."""
    manifest = folder / "dialogues.jsonl"
    users = list(USERS.items())
    for seed in range(count):
        if seed % 4:
            how, text = damaged_json(entry("middle"), seed)
            line = text.encode("utf-8", "surrogatepass")
        else:
            how, line = damaged(json.dumps(entry("middle")).encode(), seed)
        manifest.write_bytes(
            b"\n".join((FIRST.encode(), line.translate(bytes.maketrans(b"\r\n", b"  ")), LAST.encode()))
        )
        yield Case(f"line {seed} ({how})", partial(_open, folder), must="work")
        if seed % 20 == 1:
            name, use = users[seed // 20 % len(users)]
            yield Case(f"line {seed} ({how}) in {name}", partial(use, folder), must="work")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for role in ("initiator", "responder"):
        film(tmp_path / f"{role}.mp4")
    return tmp_path


def test_a_hostile_line_costs_that_line_alone(folder: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_lines, folder, amount(2000))


def hostile_files(folder: Path) -> Iterator[Case]:
    """Manifests that are strange as a whole, by every command that reads one."""
    good = (FIRST + "\n" + LAST).encode()
    readable = {
        "a mark": codecs.BOM_UTF8 + good,
        "old line ends": good.replace(b"\n", b"\r\n"),
        "gaps": b"\n\n" + good + b"\n\n",
    }
    strange = {
        "empty": b"", "spaces": b" \n\n ", "utf-16": good.decode().encode("utf-16"), "binary": os.urandom(4000),
        "a list": b"[" + good.replace(b"\n", b",") + b"]", "deep": b"[" * 200_000, "one number": b"1" * 100_000,
        "a long line": b'{"id": "' + b"x" * 10_000_000 + b'"}', "null bytes": bytes(10_000),
        "twice": good + b"\n" + good,
    }  # fmt: skip
    for suffix in ("jsonl", "json"):
        manifest = folder / f"dialogues.{suffix}"
        for name, data in readable.items() if suffix == "jsonl" else ():
            manifest.write_bytes(data)
            yield Case(f"jsonl: {name}", partial(_open, folder), must="work")
        for name, data in strange.items():
            manifest.write_bytes(data)
            for command, use in (("open", Dialogues), *USERS.items()):
                yield Case(f"{suffix}: {name} in {command}", partial(use, folder), names=str(folder))
        manifest.unlink()
        manifest.mkdir()
        yield Case(f"{suffix}: a folder", partial(Dialogues, folder), names=str(folder), must="fail")
        manifest.rmdir()
        os.mkfifo(manifest)
        yield Case(f"{suffix}: a pipe", partial(Dialogues, folder), names=str(folder), must="fail")
        yield Case(f"{suffix}: a pipe in ingest", partial(USERS["ingest"], folder), names=str(folder))
        manifest.unlink()


def test_a_strange_manifest_is_refused_in_a_sentence(folder: Path) -> None:
    judge(hostile_files, folder)


def damaged_tables(folder: Path, count: int) -> Iterator[Case]:
    """Damaged `dialogues.parquet` and `dialogues.csv`."""
    rows = [json.loads(line) for line in (FIRST, LAST)]
    table = pa.Table.from_pylist([row | {"turns": json.dumps(row["turns"])} for row in rows])
    parquet, comma = folder / "dialogues.parquet", folder / "dialogues.csv"
    pq.write_table(table, parquet)
    good = parquet.read_bytes()
    text = b"dialogue,turn,role,speaker,clip,start,end,dover\nd1,0,responder,ann,responder.mp4,0,0.36,0.5\n"
    for seed in range(count):
        how, data = damaged(good, seed)
        comma.unlink(missing_ok=True)
        parquet.write_bytes(data)
        yield Case(f"parquet {seed} ({how})", partial(Dialogues, folder), names="dialogues.parquet")
        how, data = damaged(text, seed)
        parquet.unlink()
        comma.write_bytes(data)
        yield Case(f"csv {seed} ({how})", partial(USERS["ingest"], folder), names=str(folder))


def test_a_damaged_table_is_refused_in_a_sentence(folder: Path, amount: Callable[[int], int]) -> None:
    judge(damaged_tables, folder, amount(150))


def test_a_folder_of_hostile_names_is_ingested(folder: Path) -> None:
    """Clips without a manifest: pipes, loops and names of any bytes beside two good films."""
    judge(hostile_names, folder)


def hostile_names(folder: Path) -> Iterator[Case]:
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "away.mp4").symlink_to("/etc/passwd")
    (folder / "self").symlink_to(folder, target_is_directory=True)
    (folder / "folder.mp4").mkdir()
    for name in (b"\xff\xfe.mp4", "é 字.mp4".encode(), b"-rf.mp4", b"a\nb.mp4", b"' ${x} $(id).mp4"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes((folder / "responder.mp4").read_bytes())
    for name, use in USERS.items():
        if name == "ingest":
            yield Case(f"names in {name}", partial(use, folder), must="work")
