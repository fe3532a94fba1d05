"""The page that the demo writes: films of all systems side by side, loss curves, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.playground.demo.measure import Scores, percent
from vidchat.playground.people.script import FEELINGS, TOPICS, cases
from vidchat.reports.page import render
from vidchat.reports.sheet import Panel, contact_sheet, strip
from vidchat.runtime.atomic import write_text
from vidchat.training.metrics import read_metrics

NUMBERS = (1, 2, 3)
"""Questions of a conversation."""


@dataclass(frozen=True)
class Caption:
    """Words below a film, and whether they are right, if that can be said."""

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Shown:
    """One dialogue of the page.

    Attributes:
        title: Heading above the films.
        films: File of each system's film.
        captions: Captions of the films of some systems.
    """

    title: str
    films: Mapping[str, Path]
    captions: Mapping[str, Sequence[Caption]] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Dialogues of one kind, under a heading and a text."""

    heading: str
    text: str
    shown: Sequence[Shown]


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


def draw_sheet(dialogues: Sequence[Shown], path: Path, systems: Sequence[str], moments: int = 5) -> None:
    """Draws frames of some films into a PNG: a row per dialogue, a panel of `moments` frames per system."""
    contact_sheet([[_panel(shown, system, moments) for system in systems] for shown in dialogues]).save(path)


def _panel(shown: Shown, system: str, moments: int) -> Panel:
    frames = read_clip(Clip(shown.films[system], ""), fps=25, size=(80, 160), sample_rate=16000).frames
    words = "; ".join(caption.text for caption in shown.captions.get(system, ()))
    return Panel(f"{system}: {words}", strip(frames[4:-9], moments))


HEAD = (
    "", "face is the reference's", "mouth follows its audio (r)", "… another audio (r)", "right answer to the first",
    "… second", "… third question", "right topic", "right feeling", "length right to 2 chunks",
    "nods at phrase ends (F1)", "… of another dialogue (F1)", "mouth shut while listening",
)  # fmt: skip


def _row(name: str, s: Scores) -> list[str]:
    right = [percent(*s.right[number]) if number in s.right else "" for number in NUMBERS]
    shares = [f"{share:.0%}" for share in (s.topic, s.feeling, s.length)]
    listening = [f"{s.nods:.2f}", f"{s.nods_shuffled:.2f}", f"{s.shut:.0%}"]
    return [name, f"{s.identity:.0%}", f"{s.mouth:.2f}", f"{s.mouth_shuffled:.2f}", *right, *shares, *listening]


def _chance(people: int) -> list[str]:
    """Returns the last row of the table, for a number of people whose faces are told apart."""
    answer, topic, feeling = (f"{1 / len(words):.0%}" for words in (cases(), TOPICS, FEELINGS))
    return ["chance", f"{1 / people:.0%}", "0", "", *[answer] * len(NUMBERS), topic, feeling, "", "", "", ""]


def write_page(folder: Path, sections: Sequence[Section], scores: Mapping[str, Scores], notes: Sequence[str]) -> Path:
    """Writes `index.html` beside the films and returns its path; without scores, it shows the films alone."""
    page = folder / "index.html"
    people = len(next(iter(scores.values())).answers) if scores else 1
    text = render(
        "demo.html",
        title="vidchat",
        head=HEAD,
        rows=[_row(name, measured) for name, measured in scores.items()],
        foot=_chance(people),
        notes=notes,
        sections=[
            {
                "heading": section.heading,
                "text": section.text,
                "dialogues": [{"title": shown.title, "films": _films(folder, shown)} for shown in section.shown],
            }
            for section in sections
        ],
        losses=bool(scores),
    )
    write_text(page, text)
    return page


def _films(folder: Path, shown: Shown) -> list[dict[str, object]]:
    """Returns the films of a dialogue: their systems, files and captions."""
    return [
        {
            "system": system,
            "source": quote(path.relative_to(folder).as_posix()),
            "captions": shown.captions.get(system, ()),
        }
        for system, path in shown.films.items()
    ]
