"""`vidchat bench`: pairs, candidates, scores and reports, for the generated clips of any system."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vidchat.cli import bench_ablation, bench_score
from vidchat.cli.bench_score import Output, Pairs, console, need_pairs
from vidchat.cli.settings import Settings, command_with, read_settings
from vidchat.runtime.errors import user_errors
from vidchat.runtime.sizes import format_size

app = typer.Typer(
    help="VidChatBench: scores folders of generated clips, of any system, by eight dimensions.", no_args_is_help=True
)


@dataclass(frozen=True)
class MakeSettings:
    """Settings of `make`.

    Attributes:
        clips: Folder of SpeakerVid-5M's cut clips, needed with its testset.json.
        split: Split of a data folder from which pairs are taken.
        limit: Largest number of pairs; null takes all.
        seconds: Length of every answer in seconds; null takes the length of the longest true answer.
        size: Size at which clips are scored, HEIGHTxWIDTH; null takes the commonest of the true answers.
    """

    clips: Path | None = None
    split: str = "test"
    limit: int | None = None
    seconds: float | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, not {self.limit}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds must be above 0, not {self.seconds}")


@dataclass(frozen=True)
class CandidateSettings:
    """Settings of `candidates`.

    Attributes:
        model: Language model that writes the replies, a folder or Hub name.
        device: Device of the model.
    """

    model: str | None = None
    device: str = "cpu"


@app.callback()
def main() -> None:
    """VidChatBench: scores folders of generated clips, of any system, by eight dimensions."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # the report names broken clips


@app.command(cls=command_with(lambda: (MakeSettings,)))
def make(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A folder with dialogues.jsonl, or SpeakerVid-5M's testset.json.")
    ],
    output: Output,
    settings: Settings = None,
) -> None:
    """Makes test pairs of speakers unseen in training: clips, reference frames and pairs.jsonl, in one folder."""
    with user_errors():
        chosen = read_settings(MakeSettings, settings)
        if data.is_dir() and chosen.clips is not None:
            raise ValueError("clips=FOLDER belongs to a testset.json; the clips of a data folder are its own")
        if not data.is_dir() and not data.is_file():
            raise ValueError(f"{data}: there is no such data folder or testset.json")
        if data.is_file() and (chosen.clips is None or not chosen.clips.is_dir()):
            raise ValueError(f"{data}: give the folder of its clips by clips=FOLDER (clips={chosen.clips} is none)")
        from vidchat.bench.make import make_from_folder, write_bench
        from vidchat.bench.pairs import read_benchmark
        from vidchat.bench.testset import read_testset

        if chosen.clips is None:
            report = make_from_folder(data, output, chosen.split, chosen.limit, chosen.seconds, chosen.size)
        else:
            dialogues, report = read_testset(data, chosen.clips)
            report = write_bench(dialogues[: chosen.limit], output, report, chosen.seconds, chosen.size)
        benchmark = read_benchmark(output)
        report.write(output / "report.txt")
        console.print(str(report), markup=False)
        size = format_size(benchmark.size or (0, 0))
        console.print(f"every answer: {benchmark.answer_seconds:g} s; scored at {size}", highlight=False)


@app.command(cls=command_with(lambda: (CandidateSettings,)))
def candidates(
    pairs: Pairs,
    rendered: Annotated[
        bool, typer.Option("--rendered", help="The pairs are rendered dyads, whose candidates are known.")
    ] = False,
    settings: Settings = None,
) -> None:
    """Gives every pair five candidate replies of different quality, for the coherence metric."""
    with user_errors():
        chosen = read_settings(CandidateSettings, settings)
        need_pairs(pairs)
        if rendered == (chosen.model is not None):
            raise ValueError("give either model=NAME or --rendered")
        from vidchat.bench.pairs import CANDIDATES, read_pairs, write_lines

        questions = read_pairs(pairs)
        if chosen.model is None:
            from vidchat.playground.rendered_candidates import rendered_candidates

            write_lines(pairs / CANDIDATES, [rendered_candidates(pair, pairs) for pair in questions])
            console.print(f"{len(questions)} pairs with candidates")
            return
        from vidchat.bench.candidates import ReplyWriter, write_candidates

        writer = ReplyWriter(chosen.model, chosen.device)
        console.print(write_candidates(pairs, questions, writer, writer.name), markup=False)


bench_score.register(app)
bench_ablation.register(app)
