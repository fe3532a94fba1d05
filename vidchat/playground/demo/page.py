"""The page that the demo writes: clips side by side, loss curves, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.playground.demo.measure import Scores, percent
from vidchat.reports.page import render
from vidchat.reports.sheet import Panel, contact_sheet, strip
from vidchat.runtime.atomic import write_text
from vidchat.training.metrics import read_metrics


@dataclass(frozen=True)
class Shown:
    """One dialogue of the page.

    Attributes:
        title: Heading above the clips.
        right: Words of the right answer.
        clips: File of each column's clip.
        heard: Words recognised in the clip of a column.
    """

    title: str
    right: str
    clips: Mapping[str, Path]
    heard: Mapping[str, str]


def draw_losses(runs: Sequence[Path], path: Path) -> None:
    """Draws the losses in the stages' `metrics.csv` files into a PNG, one panel per stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 2.8), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        log = run / "metrics.csv"  # absent after a stage of very few steps
        curves = read_metrics(log) if log.is_file() else {}
        for name in ("video", "audio"):
            for split, style in (("train", "-"), ("val", "o")):
                if points := curves.get(f"{split}/{name}"):
                    label = f"{name}, {split}"
                    axis.plot(*zip(*points, strict=True), style, markersize=4, linewidth=1.2, label=label)
        axis.set(title=run.name, xlabel="step")
        axis.grid(alpha=0.3)
        if curves:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_sheet(dialogues: Sequence[Shown], path: Path, columns: Sequence[str], moments: int = 5) -> None:
    """Draws frames of some dialogues into a PNG: a row per dialogue, a panel of `moments` frames per column."""
    contact_sheet([[_panel(shown, column, moments) for column in columns] for shown in dialogues]).save(path)


def _panel(shown: Shown, column: str, moments: int) -> Panel:
    frames = read_clip(Clip(shown.clips[column], ""), fps=25, size=(80, 80), sample_rate=16000).frames
    heard = shown.heard.get(column, shown.title.split("”")[0].strip("“"))
    return Panel(f"{column}: {heard}", strip(frames[4:-9], moments))


HEAD = (
    "", "face is the reference's", "mouth follows its audio (r)", "… another audio (r)", "right answer",
    "right topic", "right feeling", "PSNR to the truth",
)  # fmt: skip


def _row(name: str, s: Scores) -> list[str]:
    right = [percent(s.answer, len(s.heard)), f"{s.topic:.0%}", f"{s.feeling:.0%}"]
    return [name, f"{s.identity:.0%}", f"{s.mouth:.2f}", f"{s.mouth_shuffled:.2f}", *right, f"{s.psnr:.1f} dB"]


def write_page(
    folder: Path,
    dialogues: Sequence[Shown],
    scores: Mapping[str, Scores],
    chance: Mapping[str, float],
    notes: Sequence[str],
) -> Path:
    """Writes `index.html` beside the clips and returns its path; without scores, it shows the clips alone."""
    face, answer, topic, feeling = (f"{chance.get(name, 0):.0%}" for name in ("identity", "answer", "topic", "feeling"))
    page = folder / "index.html"
    text = render(
        "demo.html",
        title="vidchat",
        head=HEAD,
        rows=[_row(name, measured) for name, measured in scores.items()],
        foot=["chance", face, "0", "", answer, topic, feeling, ""],
        notes=notes,
        dialogues=[{"title": shown.title, "clips": _clips(folder, shown)} for shown in dialogues],
        losses=bool(scores),
    )
    write_text(page, text)
    return page


def _clips(folder: Path, shown: Shown) -> list[dict[str, object]]:
    """Returns the clips of a row: their columns, files, recognised words, and whether these are right."""
    heard = shown.heard
    return [
        {
            "column": column,
            "source": quote(path.relative_to(folder).as_posix()),
            "heard": heard.get(column),
            "right": heard.get(column) == shown.right,
        }
        for column, path in shown.clips.items()
    ]
