"""The report as one page that works from the file system: table, plots, every pair's scores, players side by side."""

from __future__ import annotations

import base64
import html
import json
import math
import mimetypes
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from vidchat.atomic import write_text
from vidchat.bench.comparison import STATED
from vidchat.bench.plots import whiskers
from vidchat.bench.results import Number, Result
from vidchat.bench.rules import GIVEN
from vidchat.bench.systems import BUILT_IN
from vidchat.bench.table import ARROWS, PROXIES, Table, counted, figure, make_table

MEANING = {
    "video quality": "Do the pictures look like the true answers', as a set (FID, FVD) and one by one (PSNR, SSIM)?",
    "identity": "Is it the face of the reference, to the end?",
    "dialogue coherence": "Of five ranked replies, worth 0.2 to 1.0, which one is what was said nearest to?",
    "audio-visual sync": "Do the lips follow the sound?",
    "emotion": "Are the expressions those of the true answers?",
    "voice": "Is it the voice of the responder?",
    "listening": "Where the responder only listens: as quiet, and as still or lively, as the true listener?",
    "responsiveness": "How soon does the answer come, how fast, and does it hold its quality to the end?",
}


def write_page(results: Sequence[Result], path: Path, embed: int) -> Path:
    """Writes the page.

    Args:
        results: Of one or more runs.
        path: The HTML file.
        embed: The clips of so many pairs are put into the page, so that it can be sent alone; the others are named by
            their place relative to the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    table = make_table(results)
    dimensions = list(dict.fromkeys(column.dimension for column in table.columns))
    parts = {
        "STYLE": _asset("page.css"),
        "SCRIPT": _asset("sort.js") + _asset("page.js"),
        "CONTENTS": _contents(dimensions),
        "LEAD": _lead(results),
        "TABLES": "".join(_dimension(table, dimension) for dimension in dimensions),
        "CLIPS": _clips(results),
        "PROTOCOLS": _protocols(results, table),
        "DATA": _data(results, table, path.parent, embed),
    }
    page = _asset("page.html")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text)
    write_text(path, page)
    return path


def _asset(name: str) -> str:
    return (resources.files("vidchat.bench") / "assets" / name).read_text(encoding="utf-8")


def _contents(dimensions: Sequence[str]) -> str:
    own = {"pairs": "Every pair", "clips": "Clips and logs that were not good", "protocol": "The protocol"}
    places = {**{_anchor(dimension): dimension.capitalize() for dimension in dimensions}, **own}
    return "".join(f"<li><a href='#{place}'>{html.escape(title)}</a></li>" for place, title in places.items())


def _anchor(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text)


def _lead(results: Sequence[Result]) -> str:
    pairs = max(len(result.pairs) for result in results)
    protocols = " and ".join(dict.fromkeys(result.protocol for result in results))
    dates = " and ".join(dict.fromkeys(result.date for result in results if result.date))
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    when = f"; scored on {html.escape(dates)}" if dates else ""
    lines = [
        f"<p>{pairs} questions, each a clip of a person speaking and a picture of the one who answers; protocol "
        f"<b>{html.escape(protocols)}</b>{when}. Every system's answers are scored by the same code as the truth (the "
        "best that can be), a shuffled truth (real, but another question's answer) and the reference picture standing "
        "still in silence (the least that can be done). In brackets: 95&nbsp;% intervals, bootstrap over pairs. "
        "<a href='#protocol'>The protocol</a> says what systems are given, what counts, and how each number was "
        f"made.</p><p class=note>{html.escape(STATED)}</p>"
        f"<p class=note>{html.escape(PROXIES)}</p>",
        *(f"<p class=warning>{html.escape(warning)}</p>" for warning in warnings),
    ]
    return "".join(lines)


def _dimension(table: Table, dimension: str) -> str:
    columns = [column for column in table.columns if column.dimension == dimension]
    heads = "".join(
        f"<th scope=col><a href='#{_place(table, c)}' title='{html.escape(c.protocol, quote=True)}'>"
        f"{html.escape(table.head(c))}</a> {ARROWS[c.column.better]}</th>"
        for c in columns
    )
    rows = []
    for system in table.systems:
        cells = "".join(_cell(table, system, column) for column in columns)
        kind = " class=builtin" if system in BUILT_IN else ""
        rows.append(f"<tr{kind}><th scope=row>{html.escape(system)}</th>{cells}</tr>")
    plots = "".join(f"<figure>{whiskers(table, column)}</figure>" for column in columns if _rivals(table, column) > 1)
    return (
        f"<section id='{_anchor(dimension)}'><h2>{html.escape(dimension.capitalize())}</h2>"
        f"<p class=note>{html.escape(MEANING.get(dimension, ''))}</p>{_remarks(table, columns)}"
        f"<div class=scroll><table class=numbers><thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
        f"</table></div><div class=plots>{plots}</div></section>"
    )


def _cell(table: Table, system: str, column: Number) -> str:
    number = table.cell(system, column)
    if number is None:
        return "<td></td>"
    value, _, interval = figure(number).partition(" ")
    best = " class=best" if table.best(column) == system else ""
    reason = f" title='{html.escape(number.reason, quote=True)}'" if number.reason else ""
    return f"<td{best}{reason}>{value}<small>{interval}</small></td>"


def _remarks(table: Table, columns: Sequence[Number]) -> str:
    """Why columns are empty, and what those that are not cannot tell."""
    missing, doubts, heads = table.missing(), table.doubts(), [table.head(column) for column in columns]
    remarks = [(head, f"not measured: {missing[head]}") for head in heads if head in missing]
    remarks += [(head, f"doubtful on filmed people: {doubts[head]}") for head in heads if head in doubts]
    texts: dict[str, list[str]] = {}
    for head, text in remarks:
        texts.setdefault(text, []).append(head)
    return "".join(
        f"<p class=doubt><b>{html.escape(', '.join(names))}</b>: {html.escape(text)}</p>"
        for text, names in texts.items()
    )


def _place(table: Table, column: Number) -> str:
    """The anchor at which a column's protocol string stands."""
    return f"number-{table.columns.index(column)}"


def _rivals(table: Table, column: Number) -> int:
    return sum(bool(cell.count) for s in table.systems if (cell := table.cell(s, column)) is not None)


def _clips(results: Sequence[Result]) -> str:
    parts = []
    for result in results:
        for system in result.systems:
            if system.name in BUILT_IN:
                continue
            bad = "".join(
                f"<li><code>{html.escape(name)}</code>: {', '.join(score.statuses)} ({html.escape(score.note)})</li>"
                for name, score in system.bad().items()
            )
            told = f"<b>{html.escape(system.name)}</b>: {html.escape(counted(system))}"
            parts.append(
                f"<details open><summary>{told}</summary><ul>{bad}</ul></details>" if bad else f"<p>{told}</p>"
            )
    return "".join(parts)


def _protocols(results: Sequence[Result], table: Table) -> str:
    every = [GIVEN, *dict.fromkeys(result.rule for result in results)]
    rules = "".join(f"<p>{html.escape(rule)}</p>" for rule in every)
    rows = (
        f"<tr id='{_place(table, c)}'><th scope=row>{html.escape(table.head(c))}</th>"
        f"<td>{'proxy' if c.proxy else 'canonical'}</td><td><code>{html.escape(c.protocol)}</code></td></tr>"
        for c in table.columns
    )
    return f"{rules}<h3>How each number was made</h3><table class=protocols><tbody>{''.join(rows)}</tbody></table>"


def _data(results: Sequence[Result], table: Table, folder: Path, embed: int) -> str:
    """What the page's script shows, as JSON that cannot end the script element."""
    pairs: dict[str, dict[str, Any]] = {}
    for run, result in enumerate(results, 1):
        for pair in result.pairs:
            name = _name(pair, pairs, run)
            if name not in pairs:
                pairs[name] = {**_question(pair, folder, len(pairs) < embed), "id": name, "systems": {}}
            inside = list(pairs).index(name) < embed
            for system in result.systems:
                score = system.scores[str(pair["id"])]
                shown = {
                    "clip": _source(score.clip, folder, inside) if score.clip else None,
                    "values": {key: None if math.isnan(value) else value for key, value in score.values.items()},
                    "statuses": list(score.statuses),
                    "note": score.note,
                }
                # One name in two runs, with other protocols: their scores must not mix.
                before = pairs[name]["systems"].setdefault(system.name, shown)
                if before["values"] != shown["values"]:
                    pairs[name]["systems"][f"{system.name} (run {run}, {result.protocol})"] = shown
    columns = [
        {"name": c.column.name, "better": c.column.better, "digits": c.column.digits}
        for c in {c.column.name: c for c in table.columns if c.column.kind == "mean"}.values()
    ]
    systems = dict.fromkeys(system for pair in pairs.values() for system in pair["systems"])
    told = {"pairs": list(pairs.values()), "systems": list(systems), "columns": columns}
    return json.dumps(told, ensure_ascii=False).replace("<", "\\u003c")


def _name(pair: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]], run: int) -> str:
    """The pair's id; another run's pair of the same id, but with other clips or words, is told apart."""
    name = str(pair["id"])
    return name if name not in before or before[name]["hash"] == pair["hash"] else f"{name} (run {run})"


def _question(pair: Mapping[str, Any], folder: Path, embed: bool) -> dict[str, Any]:
    return {
        **{key: pair[key] for key in ("id", "hash", "question", "answer", "candidates")},
        "initiator": _source(pair["initiator"], folder, embed),
        "reference": _source({"path": pair["reference"]}, folder, embed),
    }


def _source(clip: Mapping[str, Any], folder: Path, embed: bool) -> dict[str, Any]:
    """Where a player finds a file: in the page, or beside it."""
    path = Path(str(clip["path"]))
    place = "/".join(_quoted(part) for part in Path(os.path.relpath(path, folder)).parts)
    if embed and path.is_file() and os.access(path, os.R_OK):
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        place = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return {"src": place, "start": clip.get("start") or 0, "end": clip.get("end")}


def _quoted(part: str) -> str:
    return part.replace("%", "%25").replace("#", "%23").replace("?", "%3F")
