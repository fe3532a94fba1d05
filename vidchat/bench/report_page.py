"""Writes the report as one page that works from the file system: tables, plots, scores of all pairs, and players."""

from __future__ import annotations

import math
import mimetypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidchat.bench.comparison import STATED
from vidchat.bench.results import Number, Result
from vidchat.bench.rules import GIVEN
from vidchat.bench.systems import BUILT_IN
from vidchat.bench.table import ARROWS, PROXIES, Table, format_number, make_table, status_counts
from vidchat.reports.page import data_url, render
from vidchat.runtime.atomic import write_text

Values = dict[str, Any]
MEANING = {
    "video quality": "Are the frames like those of the true answers, as a set (FID, FVD) and one by one (PSNR, SSIM)?",
    "identity": "Is it the face of the reference, to the end?",
    "dialogue coherence": "Which of five ranked replies, scored from 0.2 to 1.0, is nearest to what was said?",
    "audio-visual sync": "Do the lips follow the audio?",
    "emotion": "Are the expressions those of the true answers?",
    "voice": "Is it the voice of the responder?",
    "listening": "Where the responder only listens, is it as quiet and as lively as the true listener?",
    "responsiveness": "How soon does the answer come, how fast, and does it hold its quality to the end?",
}


def write_page(results: Sequence[Result], path: Path, embed: int) -> Path:
    """Writes the page.

    Args:
        results: One or more runs.
        path: Path of the HTML file.
        embed: Number of pairs whose clips are embedded in the page, so that it can be sent alone; the other clips are
            linked by their path relative to the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = make_table(results)
    page = render(
        "bench.html",
        title="VidChatBench",
        count=max(len(result.pairs) for result in results),
        protocols=" and ".join(dict.fromkeys(result.protocol for result in results)),
        dates=" and ".join(dict.fromkeys(result.date for result in results if result.date)),
        notes=[STATED, PROXIES],
        warnings=list(dict.fromkeys(warning for result in results for warning in result.warnings)),
        dimensions=[_dimension(table, name) for name in dict.fromkeys(c.dimension for c in table.columns)],
        systems=_clips(results),
        rules=[GIVEN, *dict.fromkeys(result.rule for result in results)],
        columns=[_head(table, column) for column in table.columns],
        data=_data(results, table, path.parent, embed),
    )
    write_text(path, page)
    return path


def _dimension(table: Table, name: str) -> Values:
    """Returns a section of the page: columns, a row for each system, and plots of the columns with several systems."""
    columns = [column for column in table.columns if column.dimension == name]
    plots = (_plot(table, column) for column in columns)
    return {
        "anchor": "".join(c if c.isalnum() else "-" for c in name),
        "title": name.capitalize(),
        "meaning": MEANING.get(name, ""),
        "remarks": _remarks(table, [table.head(column) for column in columns]),
        "columns": [_head(table, column) for column in columns],
        "rows": [
            {"system": system, "builtin": system in BUILT_IN, "cells": [_cell(table, system, c) for c in columns]}
            for system in table.systems
        ],
        "plots": [plot for plot in plots if len(plot["points"]) > 1],
    }


def _head(table: Table, column: Number) -> Values:
    return {
        "head": table.head(column),
        "arrow": ARROWS[column.column.better],
        "place": f"number-{table.columns.index(column)}",  # anchor of its protocol string
        "kind": "proxy" if column.proxy else "canonical",
        "protocol": column.protocol,
    }


def _cell(table: Table, system: str, column: Number) -> Values:
    number = table.cell(system, column)
    if number is None:
        return {"value": "", "interval": "", "best": False, "reason": ""}
    value, _, interval = format_number(number).partition(" ")
    return {"value": value, "interval": interval, "best": table.best(column) == system, "reason": number.reason}


def _remarks(table: Table, heads: Sequence[str]) -> list[tuple[str, str]]:
    """Returns why columns are empty and how the others are limited: pairs of column names and text."""
    missing, doubts = table.missing(), table.doubts()
    remarks = [(head, f"not measured: {missing[head]}") for head in heads if head in missing]
    remarks += [(head, f"doubtful on filmed people: {doubts[head]}") for head in heads if head in doubts]
    names: dict[str, list[str]] = {}
    for head, text in remarks:
        names.setdefault(text, []).append(head)
    return [(", ".join(heads), text) for text, heads in names.items()]


def _plot(table: Table, column: Number) -> Values:
    """Returns the values and intervals of all systems that have a number in a column."""
    cells = [(name, table.cell(name, column)) for name in table.systems]
    shown = [(name, number) for name, number in cells if number is not None and number.count]
    ends = [value for _, number in shown for value in (number.low, number.value, number.high)]
    points = [
        {"name": name, "builtin": name in BUILT_IN, "figure": format_number(number),
         "value": number.value, "low": number.low, "high": number.high}
        for name, number in shown
    ]  # fmt: skip
    return {
        "title": f"{table.head(column)} {ARROWS[column.column.better]}",
        "low": min(ends, default=0.0),
        "high": max(ends, default=0.0),
        "digits": column.column.digits,
        "points": points,
    }


def _clips(results: Sequence[Result]) -> list[Values]:
    """Returns the number of clips of each system by status, and the faults of the bad ones."""
    return [
        {
            "name": system.name,
            "counted": status_counts(system),
            "bad": [(pair, ", ".join(score.statuses), score.note) for pair, score in system.bad().items()],
        }
        for result in results
        for system in result.systems
        if system.name not in BUILT_IN
    ]


def _data(results: Sequence[Result], table: Table, folder: Path, embed: int) -> Values:
    """Returns the data that the page's script shows."""
    pairs: dict[str, dict[str, Any]] = {}
    for run, result in enumerate(results, 1):
        for pair in result.pairs:
            name = _name(pair, pairs, run)
            if name not in pairs:
                pairs[name] = {**_question(pair, folder, len(pairs) < embed), "id": name, "systems": {}}
            embedded = list(pairs).index(name) < embed
            for system in result.systems:
                score = system.scores[str(pair["id"])]
                entry = {
                    "clip": _source(score.clip, folder, embedded) if score.clip else None,
                    "values": {key: None if math.isnan(value) else value for key, value in score.values.items()},
                    "statuses": list(score.statuses),
                    "note": score.note,
                }
                # Two runs with different protocols may share a name; their scores must not mix.
                earlier = pairs[name]["systems"].setdefault(system.name, entry)
                if earlier["values"] != entry["values"]:
                    pairs[name]["systems"][f"{system.name} (run {run}, {result.protocol})"] = entry
    columns = [
        {"name": c.column.name, "better": c.column.better, "digits": c.column.digits}
        for c in {c.column.name: c for c in table.columns if c.column.kind == "mean"}.values()
    ]
    systems = dict.fromkeys(system for pair in pairs.values() for system in pair["systems"])
    return {"pairs": list(pairs.values()), "systems": list(systems), "columns": columns}


def _name(pair: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]], run: int) -> str:
    """Returns the id of a pair, marked with the run if an earlier run has another pair of this id."""
    name = str(pair["id"])
    return name if name not in before or before[name]["hash"] == pair["hash"] else f"{name} (run {run})"


def _question(pair: Mapping[str, Any], folder: Path, embed: bool) -> dict[str, Any]:
    return {
        **{key: pair[key] for key in ("id", "hash", "question", "answer", "candidates")},
        "initiator": _source(pair["initiator"], folder, embed),
        "reference": _source({"path": pair["reference"]}, folder, embed),
    }


def _source(clip: Mapping[str, Any], folder: Path, embed: bool) -> dict[str, Any]:
    """Returns the source of a player: a data URL, or a path relative to the page."""
    path = Path(str(clip["path"]))
    url = "/".join(_quoted(part) for part in Path(os.path.relpath(path, folder)).parts)
    if embed and path.is_file() and os.access(path, os.R_OK):
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        url = data_url(path.read_bytes(), kind)
    return {"src": url, "start": clip.get("start") or 0, "end": clip.get("end")}


def _quoted(part: str) -> str:
    return part.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
