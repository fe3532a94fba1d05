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
    from vidchat.bench.ablation import Place, Row
    from vidchat.bench.suite import Backends


@dataclass(frozen=True)
class AblationSettings(Scoring):
    """Settings of `ablation`.

    Attributes:
        rows: Folder of a trained system, or of its clips, by the row's name PROTOCOL:SWITCHES; PROTOCOL is conditioned
            or dyadic, SWITCHES are some of audio,spatial,noise, or none.
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
        from vidchat.bench.ablation import read_place
        from vidchat.bench.suite import Backends

        chosen, backends = read_two(AblationSettings, Backends, settings)
        places = dict(sorted(read_place(f"{name}={folder}") for name, folder in chosen.rows.items()))
        if len(places) < len(chosen.rows):
            raise ValueError("two rows have the same protocol and switches; give each row once")
        clips = _answers(pairs, output, places, chosen.generate)
        rows = []
        for protocol in dict.fromkeys(place.protocol for place in clips):
            rows += _score_rows(pairs, output, protocol, clips, chosen, backends)
        _write_table(rows, pairs, output, clips)


def _answers(pairs: Path, output: Path, places: Mapping[Place, Path], command: str | None) -> dict[Place, Path]:
    """The folders of all rows' clips, which a command writes first if there is one."""
    from vidchat.bench.ablation import generate

    if command is None:
        return dict(places)
    clips = {place: output / place.protocol / place.name for place in places}
    for place, release in places.items():
        console.rule(f"{place.protocol}: {place.name}")
        console.print(generate(command, release, pairs, clips[place]), markup=False)
    return clips


def _score_rows(
    pairs: Path, output: Path, protocol: str, clips: Mapping[Place, Path], chosen: Scoring, backends: Backends
) -> list[Row]:
    from vidchat.bench.ablation import rows_of
    from vidchat.bench.results import read_result

    systems = {place.name: path for place, path in clips.items() if place.protocol == protocol}
    common = {one.name: getattr(chosen, one.name) for one in fields(Scoring)}
    common["cache"] = chosen.cache or output / "features"
    results = output / f"{protocol}_scores"
    run_score(pairs, results, ScoreSettings(**common, systems=systems, protocol=protocol), backends)  # type: ignore[arg-type]
    return rows_of(read_result(results / "scores.json"))


def _write_table(rows: list[Row], pairs: Path, output: Path, clips: Mapping[Place, Path]) -> None:
    from vidchat.bench.ablation import ablation_table, as_json
    from vidchat.bench.contact_sheet import draw_sheet
    from vidchat.bench.orderings import orderings, orderings_text
    from vidchat.bench.pairs import read_pairs

    table = ablation_table(rows) + "\n" + orderings_text(orderings(rows))
    write_text(output / "ablation.md", table)
    write_text(output / "ablation.json", json.dumps(as_json(rows), indent=1) + "\n")
    named = {f"{place.protocol}: {place.name}": path for place, path in clips.items()}
    draw_sheet(read_pairs(pairs), named, output / "ablation.png")
    print(table)
    console.print(f"also {output / 'ablation.md'}, ablation.json, ablation.png", highlight=False)
