"""`vidchat bench`: pairs, scores, reports, for the generated clips of any system."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from vidchat.atomic import write_text
from vidchat.errors import plainly

app = typer.Typer(
    help="VidChatBench: scores folders of generated clips, of any system, by seven dimensions.", no_args_is_help=True
)
console = Console()


def _option(panel: str, text: str) -> Any:
    """An option under a heading of the help."""
    return typer.Option(help=text, rich_help_panel=panel)


Pairs = Annotated[Path, typer.Option("--pairs", help="The benchmark folder, as `make` wrote it.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where it goes.")]
_view = partial(_option, "How clips are looked at")
_weights = partial(_option, "Published weights")
_work = partial(_option, "The work and the report")


@app.callback()
def main() -> None:
    """Commands about the benchmark."""
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # what it says of broken clips is told in the report


@app.command()
def make(
    output: Output,
    data: Annotated[Path | None, typer.Option(help="A folder with dialogues.jsonl.")] = None,
    testset: Annotated[Path | None, typer.Option(help="SpeakerVid-5M's testset.json, with --clips.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Folder of SpeakerVid-5M's cut clips.")] = None,
    split: Annotated[str, typer.Option(help="Of a folder's dialogues.")] = "test",
    limit: Annotated[int | None, typer.Option(help="At most so many pairs.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Of every answer, whatever the true one's; else the longest true answer's.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="At which clips are scored, WIDTHxHEIGHT; else the true answers' commonest.")
    ] = None,
) -> None:
    """Make test pairs of speakers unseen in training: clips, reference pictures and pairs.jsonl, in one folder."""
    with plainly():
        if (data is None) == (testset is None) or (testset is None) != (clips is None):
            raise ValueError("give --data FOLDER, or --testset testset.json with --clips FOLDER")
        if seconds is not None and not 0 < seconds < math.inf:
            raise ValueError(f"--seconds must be above 0, not {seconds}")
        shape = _size(size) if size else None
        if testset is not None and not testset.is_file():
            raise ValueError(f"{testset}: cannot be read as JSON (there is no such file)")
        for folder in filter(None, (data, clips)):
            if not folder.is_dir():
                raise ValueError(f"{folder}: there is no such data folder")
        from vidchat.bench.make import make_from_folder, write_bench
        from vidchat.bench.pairs import read_benchmark
        from vidchat.bench.testset import read_testset

        if data is not None:
            report = make_from_folder(data, output, split, limit, seconds, shape)
        else:
            assert testset is not None and clips is not None, "checked above"  # noqa: PT018
            dialogues, report = read_testset(testset, clips)
            report = write_bench(dialogues[:limit], output, report, seconds, shape)
        benchmark = read_benchmark(output)
        report.write(output / "report.txt")
        console.print(str(report), markup=False)
        height, width = benchmark.size or (0, 0)
        console.print(f"every answer: {benchmark.answer_seconds:g} s; scored at {width}x{height}", highlight=False)


@app.command()
def score(
    pairs: Pairs,
    output: Output,
    system: Annotated[list[str], typer.Option(help="NAME=FOLDER of generated clips, ID.mp4 each; may be repeated.")],
    protocol: Annotated[
        str, typer.Option(help="conditioned (the systems were told the words) or dyadic (they heard the initiator).")
    ] = "dyadic",
    size: Annotated[str | None, _view("Working size, WIDTHxHEIGHT; else the one that the pairs state.")] = None,
    frames: Annotated[int | None, _view("Pictures of a clip for PSNR and SSIM, evenly; else all.")] = None,
    face: Annotated[Path | None, _view("RFB-320 face detector, ONNX; else faces are in the middle.")] = None,
    inception: Annotated[Path | None, _weights("FID: inception-2015-12-05.pt (TorchScript).")] = None,
    i3d: Annotated[Path | None, _weights("FVD: i3d_torchscript.pt of StyleGAN-V.")] = None,
    videomae: Annotated[Path | None, _weights("CD-FVD, an extra: vit_g_hybrid_pt_1200e_ssv2_ft.pth.")] = None,
    arcface: Annotated[Path | None, _weights("Identity: w600k_r50.onnx; with --scrfd.")] = None,
    scrfd: Annotated[Path | None, _weights("Landmarks for ArcFace: det_10g.onnx.")] = None,
    whisper: Annotated[str | None, _weights("Coherence: a Whisper model, folder or Hub name.")] = None,
    clip: Annotated[str | None, _weights("Coherence: a CLIP model; with --whisper.")] = None,
    sentence: Annotated[str | None, _weights("Coherence: a sentence encoder; with --whisper.")] = None,
    syncnet: Annotated[Path | None, _weights("Sync: syncnet_v2.model.")] = None,
    expression: Annotated[
        str | None, _weights("Emotion: package.module:function that gives expression coefficients.")
    ] = None,
    sim: Annotated[Path | None, _weights("Voice: UniSpeech's wavlm_large_finetune.pth.")] = None,
    xvector: Annotated[str | None, _weights("Voice: a speaker model of transformers.")] = None,
    dnsmos: Annotated[Path | None, _weights("Speech quality, an extra: sig_bak_ovr.onnx.")] = None,
    utmos: Annotated[Path | None, _weights("Speech quality, an extra: utmos22_strong_step7459_v1.pt.")] = None,
    device: Annotated[str, _work("Where networks run.")] = "cpu",
    workers: Annotated[int, _work("Processes, which share the pairs.")] = 1,
    resamples: Annotated[int, _work("For the intervals of Fréchet distances; under 20, nothing is told apart.")] = 100,
    cache: Annotated[Path | None, _work("Folder of features; else OUTPUT/features.")] = None,
    embed: Annotated[int, _work("Pairs whose clips are put into the page itself.")] = 12,
) -> None:
    """Score systems beside the truth, a shuffled truth and a frozen picture; writes JSON and the report.

    Without weights it runs offline by proxies, which are marked in every table; published weights take a proxy's
    place, or add a column. docs/bench.md says what each measures, and by which rule bad clips are scored.
    """
    with plainly():
        _need_pairs(pairs)
        folders, shape, asked_by = _folders(system), _size(size) if size else None, _protocol(protocol)
        from vidchat.bench.clips import View
        from vidchat.bench.pairs import read_benchmark
        from vidchat.bench.scoring import score as score_systems
        from vidchat.bench.sizes import only_size
        from vidchat.bench.suite import Backends
        from vidchat.bench.systems import Folder

        backends = Backends(
            face=face, inception=inception, i3d=i3d, videomae=videomae, arcface=arcface, scrfd=scrfd, syncnet=syncnet,
            whisper=whisper, clip=clip, sentence=sentence, expression=expression, sim=sim, xvector=xvector,
            dnsmos=dnsmos, utmos=utmos, frames=frames, device=device,
        )  # fmt: skip
        benchmark = read_benchmark(pairs)
        result = score_systems(
            benchmark.pairs,
            [Folder(name, folder) for name, folder in folders.items()],
            backends,
            View(shape or benchmark.size or only_size(benchmark.pairs)),
            cache or output / "features",
            protocol=asked_by,
            workers=workers,
            resamples=resamples,
        )
        dated = replace(result, date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
        dated.write(output / "scores.json")
        _report([output / "scores.json"], output, embed)


@app.command()
def report(
    scores: Annotated[list[Path], typer.Argument(help="scores.json files; systems of all go into one table.")],
    output: Output,
    embed: Annotated[int, typer.Option(help="Pairs whose clips are put into the page itself.")] = 12,
) -> None:
    """Write report.md, report.tex and index.html from scores."""
    with plainly():
        for path in scores:
            if not path.is_file():
                raise ValueError(f"{path}: holds no results of `vidchat bench score` (there is no such file)")
        _report(scores, output, embed)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablation(
    context: typer.Context,
    pairs: Pairs,
    row: Annotated[
        list[str],
        typer.Option(
            help="PROTOCOL:SWITCHES=FOLDER of a trained system, or of its clips; may be repeated. PROTOCOL is "
            "conditioned or dyadic; SWITCHES are some of audio,spatial,noise, or none."
        ),
    ],
    output: Output,
    generate: Annotated[
        str | None,
        typer.Option(help="Command that answers pairs, with {release}, {pairs}, {output}; else FOLDERs hold clips."),
    ] = None,
) -> None:
    """Score the rows of the paper's Table 2, and print them beside the published ones. Other options go to `score`."""
    with plainly():
        for text in row:
            if not Path(text.partition("=")[2] or ".").is_dir():
                raise ValueError(f"'{text}': there is no folder {text.partition('=')[2]}")
        _need_pairs(pairs)
    from vidchat.bench.ablation import ablation_table, as_json, read_place, rows_of
    from vidchat.bench.ablation import generate as run
    from vidchat.bench.orderings import orderings, orderings_text
    from vidchat.bench.pairs import read_pairs
    from vidchat.bench.results import read_result
    from vidchat.bench.sheet import draw_sheet

    with plainly():
        places = sorted(read_place(text) for text in row)
        clips = {place: path if generate is None else output / place.protocol / place.name for place, path in places}
        if generate is not None:
            for place, path in places:
                console.rule(f"{place.protocol}: {place.name}")
                console.print(run(generate, path, pairs, clips[place]), markup=False)
        rows = []
        for protocol in dict.fromkeys(place.protocol for place in clips):
            systems = [f"--system={place.name}={path}" for place, path in clips.items() if place.protocol == protocol]
            results = output / f"{protocol}_scores"
            words = [f"--pairs={pairs}", f"--output={results}", f"--protocol={protocol}", *systems, *context.args]
            cache = [] if any(word.startswith("--cache") for word in words) else [f"--cache={output / 'features'}"]
            app(["score", *words, *cache], standalone_mode=False)
            rows += rows_of(read_result(results / "scores.json"))
        table = ablation_table(rows) + "\n" + orderings_text(orderings(rows))
        write_text(output / "ablation.md", table)
        write_text(output / "ablation.json", json.dumps(as_json(rows), indent=1) + "\n")
        told = {f"{place.protocol}: {place.name}": path for place, path in clips.items()}
        draw_sheet(read_pairs(pairs), told, output / "ablation.png")
        print(table)
        console.print(f"also {output / 'ablation.md'}, ablation.json, ablation.png", highlight=False)


@app.command()
def candidates(
    pairs: Pairs,
    model: Annotated[str | None, typer.Option(help="A language model, folder or Hub name.")] = None,
    rendered: Annotated[bool, typer.Option(help="The pairs are rendered dyads, whose candidates are known.")] = False,
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
) -> None:
    """Give every pair five candidate replies of different worth, for the coherence measure."""
    with plainly():
        _need_pairs(pairs)
        if rendered == (model is not None):
            raise ValueError("give either --model NAME or --rendered")
        from vidchat.bench.pairs import CANDIDATES, read_pairs, write_lines

        asked = read_pairs(pairs)
        if model is None:
            from vidchat.playground.rendered_candidates import rendered_candidates

            write_lines(pairs / CANDIDATES, [rendered_candidates(pair, pairs) for pair in asked])
            console.print(f"{len(asked)} pairs with candidates")
            return
        from vidchat.bench.candidates import Writer, write_candidates

        writer = Writer(model, device)
        console.print(write_candidates(pairs, asked, writer, writer.told), markup=False)


def _report(scores: list[Path], output: Path, embed: int) -> None:
    from vidchat.bench.page import write_page
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


def _folders(given: list[str]) -> dict[str, Path]:
    """Folders by the systems' names, checked before anything slow is imported."""
    folders: dict[str, Path] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise ValueError(f"'{text}' must be NAME=FOLDER")
        if name in folders:
            raise ValueError(f"two systems are named '{name}'; give each its own name")
        if not Path(folder).is_dir():
            raise ValueError(f"'{name}': there is no folder {folder}")
        folders[name] = Path(folder)
    return folders


def _need_pairs(folder: Path) -> None:
    """Raises `ValueError` at once where `read_benchmark` would after slow imports."""
    if not (folder / "pairs.jsonl").is_file():
        raise ValueError(f"{folder}: has no pairs.jsonl; make one by `vidchat bench make`")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise ValueError(f"'{text}' must be WIDTHxHEIGHT, such as 480x768")
    return int(found[2]), int(found[1])


def _protocol(text: str) -> Literal["conditioned", "dyadic"]:
    if text == "conditioned":
        return "conditioned"
    if text == "dyadic":
        return "dyadic"
    raise ValueError(f"--protocol is conditioned or dyadic, not '{text}'")
