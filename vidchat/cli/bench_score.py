"""`vidchat bench score | report`: metrics of clips, and their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from vidchat.cli.settings import Settings, command_with, read_settings, read_two
from vidchat.runtime.atomic import write_text
from vidchat.runtime.errors import user_errors

if TYPE_CHECKING:
    from vidchat.bench.suite import Backends

console = Console()
Pairs = Annotated[Path, typer.Argument(metavar="PAIRS", help="The benchmark folder, as `make` wrote it.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")]


@dataclass(frozen=True)
class Scoring:
    """Settings that `score` and `ablation` share.

    Attributes:
        size: Size at which clips are scored, HEIGHTxWIDTH; null takes the one that the pairs state.
        workers: Number of processes; the numbers do not depend on it.
        resamples: Number of resamples for the intervals of Fréchet distances; below 20, systems are not compared.
        cache: Folder of the feature cache; null takes OUTPUT/features.
        embed: Number of pairs whose clips are embedded in the page.
    """

    size: tuple[int, int] | None = None
    workers: int = 1
    resamples: int = 100
    cache: Path | None = None
    embed: int = 12


@dataclass(frozen=True)
class ScoreSettings(Scoring):
    """Settings of `score`.

    Attributes:
        systems: Folder of a system's clips, ID.mp4 for each pair, by the name of the system.
        protocol: Input of the systems: conditioned (the words to say) or dyadic (the initiator's clip alone).
    """

    systems: Mapping[str, Path] = field(default_factory=dict)
    protocol: Literal["conditioned", "dyadic"] = "dyadic"

    def __post_init__(self) -> None:
        if not self.systems:
            raise ValueError("name at least one system by systems.NAME=FOLDER, the folder of its clips")
        need_folders("systems", self.systems)


@dataclass(frozen=True)
class ReportSettings:
    """Settings of `report`.

    Attributes:
        embed: Number of pairs whose clips are embedded in the page.
    """

    embed: int = 12


def register(group: typer.Typer) -> None:
    """Adds the commands to a group."""
    group.command(cls=scoring_command(ScoreSettings))(score)
    group.command(cls=command_with(lambda: (ReportSettings,)))(report)


def scoring_command(kind: type[Scoring]) -> type[typer.core.TyperCommand]:
    """Returns the class of a command whose settings are `kind` and the weights of the metrics."""

    def kinds() -> Sequence[type]:
        from vidchat.bench.suite import Backends

        return kind, Backends

    return command_with(kinds)


def score(pairs: Pairs, output: Output, settings: Settings = None) -> None:
    """Scores systems beside the truth, a shuffled truth and a frozen frame; writes JSON and the report.

    Without weights it runs offline with proxies, which are marked in every table; published weights replace a proxy or
    add a column. docs/reference/bench.md says what each metric measures, and by which rule bad clips are scored.

    vidchat bench score BENCH -o RESULTS systems.ours=ANSWERS systems.theirs=OTHERS workers=2
    """
    with user_errors():
        need_pairs(pairs)
        from vidchat.bench.suite import Backends

        chosen, backends = read_two(ScoreSettings, Backends, settings)
        run_score(pairs, output, chosen, backends)


def run_score(pairs: Path, output: Path, chosen: ScoreSettings, backends: Backends) -> None:
    """Scores systems, and writes `scores.json` and the report."""
    from vidchat.bench.clips import View
    from vidchat.bench.pairs import read_benchmark
    from vidchat.bench.scoring import score as score_systems
    from vidchat.bench.systems import Folder
    from vidchat.bench.truth_sizes import only_size

    benchmark = read_benchmark(pairs)
    result = score_systems(
        benchmark.pairs,
        [Folder(name, folder) for name, folder in chosen.systems.items()],
        backends,
        View(chosen.size or benchmark.size or only_size(benchmark.pairs)),
        chosen.cache or output / "features",
        protocol=chosen.protocol,
        workers=chosen.workers,
        resamples=chosen.resamples,
    )
    dated = replace(result, date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    dated.write(output / "scores.json")
    _write_report([output / "scores.json"], output, chosen.embed)


def report(
    scores: Annotated[
        list[str],
        typer.Argument(metavar="SCORES... KEY=VALUE", help="Files scores.json, whose systems are put into one table."),
    ],
    output: Output,
) -> None:
    """Writes report.md, report.tex and index.html from files of scores."""
    with user_errors():
        words = [word for word in scores if "=" in word and not Path(word).exists()]
        paths = [Path(word) for word in scores if word not in words]
        chosen = read_settings(ReportSettings, words)
        for path in paths or [Path("SCORES")]:
            if not path.is_file():
                raise ValueError(f"{path}: holds no results of `vidchat bench score` (there is no such file)")
        _write_report(paths, output, chosen.embed)


def _write_report(scores: list[Path], output: Path, embed: int) -> None:
    from vidchat.bench.report_page import write_page
    from vidchat.bench.results import read_result
    from vidchat.bench.table import latex, markdown

    results = [read_result(path) for path in scores]
    output.mkdir(parents=True, exist_ok=True)
    text = markdown(results)
    write_text(output / "report.md", text)
    write_text(output / "report.tex", latex(results))
    page = write_page(results, output / "index.html", embed)
    print(text.split("\n## Protocols")[0])
    console.print(f"Open [bold]{page}[/bold]; also report.md, report.tex", highlight=False)


def need_folders(key: str, folders: Mapping[str, Path]) -> None:
    """Raises `ValueError` where one of a mapping's folders does not exist."""
    for name, folder in folders.items():
        if not folder.is_dir():
            raise ValueError(f"{key}.{name}: there is no folder {folder}")


def need_pairs(folder: Path) -> None:
    """Raises `ValueError` if the folder has no pairs, before the slow imports."""
    if not (folder / "pairs.jsonl").is_file():
        raise ValueError(f"{folder}: has no pairs.jsonl; make one by `vidchat bench make`")
