"""`vidchat bench ablation`: the rows of the paper's Table 2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vidchat.cli.bench_score import (
    Output,
    Pairs,
    ScoreSettings,
    Scoring,
    console,
    need_folders,
    need_pairs,
    run_score,
    scoring_command,
)
from vidchat.cli.settings import Settings, read_two
from vidchat.runtime.atomic import write_text
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from vidchat.bench.ablation import Row, RowKey
    from vidchat.bench.suite import Backends


@dataclass(frozen=True)
class AblationSettings(Scoring):
    """Settings of `ablation`.

    Attributes:
        rows: Folder of a trained system, or of its clips, by the row's name PROTOCOL:SWITCHES; PROTOCOL is conditioned
            or dyadic, SWITCHES are those of audio,spatial,noise,fine,resample that are on, or none.
        generate: Command that answers the pairs with one system, in which {release}, {pairs} and {output} are replaced;
            null takes the rows' folders as clips.
    """

    rows: Mapping[str, Path] = field(default_factory=dict)
    generate: str | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("name at least one row by rows.PROTOCOL:SWITCHES=FOLDER, such as rows.dyadic:audio=runs/a")
        need_folders("rows", self.rows)


def register(group: typer.Typer) -> None:
    """Adds the command to a group."""
    group.command(cls=scoring_command(AblationSettings))(ablation)


def ablation(pairs: Pairs, output: Output, settings: Settings = None) -> None:
    """Scores the rows of the paper's Table 2, and prints them beside the published ones.

    vidchat bench ablation BENCH -o TABLE2 rows.dyadic:none=CLIPS rows.dyadic:audio,spatial,noise=OTHERS
    """
    with user_errors():
        need_pairs(pairs)
        from vidchat.bench.ablation import parse_row
        from vidchat.bench.suite import Backends

        chosen, backends = read_two(AblationSettings, Backends, settings)
        folders = dict(sorted(parse_row(f"{name}={folder}") for name, folder in chosen.rows.items()))
        if len(folders) < len(chosen.rows):
            raise ValueError("two rows have the same protocol and switches; give each row once")
        clips = _answers(pairs, output, folders, chosen.generate)
        rows = []
        for protocol in dict.fromkeys(key.protocol for key in clips):
            rows += _score_rows(pairs, output, protocol, clips, chosen, backends)
        _write_table(rows, pairs, output, clips)


def _answers(pairs: Path, output: Path, folders: Mapping[RowKey, Path], command: str | None) -> dict[RowKey, Path]:
    """Returns the folders of all rows' clips, which a command writes first if one is given."""
    from vidchat.bench.ablation import generate

    if command is None:
        return dict(folders)
    clips = {key: output / key.protocol / key.name for key in folders}
    for key, release in folders.items():
        console.rule(f"{key.protocol}: {key.name}")
        console.print(generate(command, release, pairs, clips[key]), markup=False)
    return clips


def _score_rows(
    pairs: Path, output: Path, protocol: str, clips: Mapping[RowKey, Path], chosen: Scoring, backends: Backends
) -> list[Row]:
    from vidchat.bench.ablation import result_rows
    from vidchat.bench.results import read_result

    systems = {key.name: path for key, path in clips.items() if key.protocol == protocol}
    common = {setting.name: getattr(chosen, setting.name) for setting in fields(Scoring)}
    common["cache"] = chosen.cache or output / "features"
    results = output / f"{protocol}_scores"
    run_score(pairs, results, ScoreSettings(**common, systems=systems, protocol=protocol), backends)  # type: ignore[arg-type]
    return result_rows(read_result(results / "scores.json"))


def _write_table(rows: list[Row], pairs: Path, output: Path, clips: Mapping[RowKey, Path]) -> None:
    from vidchat.bench.ablation import ablation_table, as_json
    from vidchat.bench.contact_sheet import draw_sheet
    from vidchat.bench.orderings import orderings, orderings_text
    from vidchat.bench.pairs import read_pairs

    table = ablation_table(rows) + "\n" + orderings_text(orderings(rows))
    write_text(output / "ablation.md", table)
    write_text(output / "ablation.json", json.dumps(as_json(rows), indent=1) + "\n")
    named = {f"{key.protocol}: {key.name}": path for key, path in clips.items()}
    draw_sheet(read_pairs(pairs), named, output / "ablation.png")
    print(table)
    console.print(f"also {output / 'ablation.md'}, ablation.json, ablation.png", highlight=False)
