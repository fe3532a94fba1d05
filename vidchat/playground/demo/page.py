"""The page that the demo ends with: clips side by side, loss curves, measurements."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.training.metrics import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from vidchat.playground.demo.measure import Scores, percent

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1180px;margin:2rem auto;padding:0 1rem;color:#223}
h1{margin-bottom:.2rem} table{border-collapse:collapse;margin:1rem 0} td,th{padding:.35rem .8rem;text-align:right}
th:first-child,td:first-child{text-align:left} thead{border-bottom:2px solid #99a}
tbody tr:nth-child(odd){background:#f4f4fa}
.dialogue{display:grid;grid-template-columns:repeat(5,1fr);gap:.7rem;margin:1.4rem 0;align-items:start}
.dialogue h3{grid-column:1/-1;margin:0;font-size:1rem;font-weight:600}
video{width:100%;border-radius:10px;background:#ddd}
figure{margin:0} figcaption{font-size:.82rem;color:#556} .right{color:#17713a} .wrong{color:#a33}
button{font:inherit;padding:.15rem .7rem;border:1px solid #aab;border-radius:6px;background:#fff;cursor:pointer}
img{max-width:100%} .note{color:#556;font-size:.9rem}
"""
SCRIPT = """
function play(button, index){const v=[...button.closest('.dialogue').querySelectorAll('video')];
const order=[v[0],v[index]]; let i=0; const next=()=>{if(i<order.length){const x=order[i++];x.currentTime=0;
x.onended=next;x.play()}}; v.forEach(x=>{x.pause();x.onended=null}); next()}
"""


@dataclass(frozen=True)
class Shown:
    """One dialogue of the page: its clips by column, and under a column what was heard in it."""

    title: str
    right: str
    clips: Mapping[str, Path]
    heard: Mapping[str, str]


def draw_losses(runs: Sequence[Path], picture: Path) -> None:
    """Draw the losses of the stages' `metrics.csv` files, one panel a stage, into a PNG."""
    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 2.8), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        log = run / "metrics.csv"  # which a stage of very few steps ends without
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
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def draw_sheet(dialogues: Sequence[Shown], picture: Path, columns: Sequence[str], moments: int = 5) -> None:
    """Draw pictures of some dialogues into a PNG: a row for each, a panel of successive moments for each column."""
    figure, axes = plt.subplots(len(dialogues), len(columns), figsize=(4.2 * len(columns), 1.25 * len(dialogues)))
    for row, shown in zip(np.atleast_2d(axes), dialogues, strict=True):
        for axis, column in zip(row, columns, strict=True):
            media = read_clip(Clip(shown.clips[column], ""), fps=25, size=(192, 192), sample_rate=16000)
            chosen = np.linspace(4, len(media.pictures) - 10, moments).astype(int)
            axis.imshow(np.concatenate([media.pictures[i].permute(1, 2, 0).numpy() for i in chosen], axis=1))
            axis.axis("off")
            heard = shown.heard.get(column, shown.title.split("”")[0].strip("“"))
            axis.set_title(f"{column}: {heard}", fontsize=9, pad=3)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.93, wspace=0.02, hspace=0.28)
    figure.savefig(picture, dpi=80)
    plt.close(figure)


def table(scores: Mapping[str, Scores], chance: Mapping[str, float]) -> str:
    """The measurements as an HTML table: systems down, questions across, chance at the foot."""
    head = (
        "<tr><th></th><th>face is the<br>reference's</th><th>mouth follows<br>its sound (r)</th>"
        "<th>… another<br>sound (r)</th><th>right<br>answer</th><th>right<br>topic</th><th>right<br>feeling</th>"
        "<th>PSNR to<br>the truth</th></tr>"
    )
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{s.identity:.0%}</td><td>{s.mouth:.2f}</td><td>{s.mouth_shuffled:.2f}</td>"
        f"<td>{percent(s.answer, len(s.heard))}</td><td>{s.topic:.0%}</td><td>{s.feeling:.0%}</td>"
        f"<td>{s.psnr:.1f} dB</td></tr>"
        for name, s in scores.items()
    ]
    foot = (
        f"<tr><td>chance</td><td>{chance['identity']:.0%}</td><td>0</td><td></td><td>{chance['answer']:.0%}</td>"
        f"<td>{chance['topic']:.0%}</td><td>{chance['feeling']:.0%}</td><td></td></tr>"
    )
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}{foot}</tbody></table>"


def write_page(
    folder: Path,
    dialogues: Sequence[Shown],
    scores: Mapping[str, Scores],
    chance: Mapping[str, float],
    notes: Sequence[str],
) -> Path:
    """Write `index.html` beside the clips; returns its path. Without scores it is the first look at the answers."""
    body = [
        "<h1>vidchat</h1><p>A person asks; another, never seen in training, answers. The model is given the first clip "
        "and one picture of the responder, and generates picture and sound together, 160 ms at a time.</p>",
        *(["<h2>Measured</h2>", table(scores, chance)] if scores else []),
        *(f"<p class=note>{html.escape(note)}</p>" for note in notes),
        "<h2>Seen and heard</h2>",
        *(_dialogue(folder, shown) for shown in dialogues),
        *(["<h2>Learned</h2><img src=losses.png alt='loss curves of the three stages'>"] if scores else []),
    ]
    page = folder / "index.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>vidchat demo</title><style>{STYLE}</style>"
        f"<script>{SCRIPT}</script>{''.join(body)}"
    )
    return page


def _dialogue(folder: Path, shown: Shown) -> str:
    figures = []
    for index, (column, clip) in enumerate(shown.clips.items()):
        heard = shown.heard.get(column)
        mark = "" if heard is None else f"<br><span class={'right' if heard == shown.right else 'wrong'}>{heard}</span>"
        button = f"<button onclick='play(this,{index})'>ask, then this</button>" if index else ""
        source = html.escape(clip.relative_to(folder).as_posix())
        figures.append(
            f"<figure><video src='{source}' controls preload=metadata playsinline></video>"
            f"<figcaption><b>{html.escape(column)}</b>{mark}<br>{button}</figcaption></figure>"
        )
    return f"<div class=dialogue><h3>{html.escape(shown.title)}</h3>{''.join(figures)}</div>"
