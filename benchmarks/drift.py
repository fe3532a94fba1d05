"""Drift of long answers: rollouts of two releases, one trained with noise injection and one without.

    python benchmarks/drift.py --release noise=outputs/a/release --release plain=outputs/b/release \
        --data outputs/data/dyads [--split test] [--answers 12] [--chunks 100] [--window 28] [--span 14] \
        [--levels 0 0.1] [--sampling temperature=0.7] [--output outputs/drift]

Every release answers the same questions, far beyond the length of its training clips, so that it depends on its own
output alone. The metrics are averaged over answers for each chunk index:

    psnr_reference   of the frames to the reference, in dB: falls as the frames decay (and with real motion)
    identity         share of answers whose face is nearest to their own reference, among all references
    latent_mean      |spatial mean of the latents, minus the reference's|, averaged over channels: a drift in colour
    latent_std       spatial deviation of the latents, over the reference's: 1 is right, less washed out, more burnt
    step             RMS change of the latents from one chunk to the next: 0 is frozen

`truth` is the round trip of the true answers through the tokenizer, over their length. The table gives means over the
first and the last `span` chunks. Writes OUTPUT.json, OUTPUT.md and OUTPUT.png (matplotlib: vidchat[demo]).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vidchat.data.folder import read_dialogues
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import read_clip, read_image
from vidchat.dialogue import Dialogue
from vidchat.generation.answer import Question, read_question, talk
from vidchat.generation.conversation import GenerationSettings
from vidchat.playground.demo.measure import nearest_face
from vidchat.release import Release, load_release

METRICS = ("psnr_reference", "identity", "latent_mean", "latent_std", "step")


def measure(
    chunks: Iterator[tuple[Tensor, Tensor]], start: Tensor, speaker: str, references: Mapping[str, Tensor]
) -> list[dict[str, float]]:
    """Returns the metrics of every chunk of one answer.

    Args:
        chunks: Frames (4, 3, H, W) uint8 and latents (C, h, w) of each chunk.
        start: Latents (C, h, w) of the reference.
        speaker: Speaker of the reference.
        references: Reference (3, H, W) uint8 of each speaker.
    """
    rows, before = [], start
    for frames, latents in chunks:
        error = (frames.float() - references[speaker].float()).square().mean().clamp(min=1e-3)
        latent, reference = latents.flatten(1), start.flatten(1)
        rows.append(
            {
                "psnr_reference": float(10 * torch.log10(255**2 / error)),
                "identity": float(nearest_face(frames, references) == speaker),
                "latent_mean": float((latent.mean(1) - reference.mean(1)).abs().mean()),
                "latent_std": float(latent.std(1).mean() / reference.std(1).mean().clamp(min=1e-6)),
                "step": float((latents - before).square().mean().sqrt()),
            }
        )
        before = latents
    return rows


def question(release: Release, dialogue: Dialogue) -> Question:
    """Returns the release's question, with the first frame of the true answer as the reference."""
    initiator = dialogue.question.path if release.hears and dialogue.question else None
    text = (dialogue.answer.text or "") if "text" in release.conditions else None
    return Question(dialogue.answer.path, initiator, text)


def start(release: Release, question: Question) -> Tensor:
    """Returns the latents (C, h, w) of a question's reference."""
    return read_question(release, question).latents[0, 0]


def rollout(release: Release, question: Question, options: argparse.Namespace, level: float) -> Iterator:
    values = {name: json.loads(value) for name, value in (word.split("=") for word in options.sampling)}
    sampling = release.responder.sampling.changed(values | {"noise_level": level})
    settings = GenerationSettings(options.chunks, options.window, sampling=sampling, ends=False)
    for step in talk(release, question, settings):
        if step.said is not None:
            yield to_bytes(step.said.frames[0].transpose(0, 1)), step.said.latents[0]


def truth(release: Release, dialogue: Dialogue) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the frames and latents of the true answer's chunks, encoded and decoded."""
    clock = release.clock
    media = read_clip(dialogue.answer, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)
    frames = media.frames[: clock.frames(clock.chunks(len(media.frames)))]
    with torch.no_grad():
        latents = release.video_vae.encode(from_bytes(frames))
        decoded = to_bytes(release.video_vae.decode(latents)[0].transpose(0, 1))[1:]
    for index, chunk in enumerate(latents[0, :, 1:].unbind(1)):
        yield decoded[4 * index : 4 * index + 4], chunk


def average(answers: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, list[float]]:
    """Returns the means over answers by chunk index, up to the length of the longest."""
    longest = max(len(rows) for rows in answers)
    by_chunk = [[rows[t] for rows in answers if t < len(rows)] for t in range(longest)]
    return {name: [sum(row[name] for row in rows) / len(rows) for rows in by_chunk] for name in METRICS}


def summary(curves: Mapping[str, list[float]], span: int) -> dict[str, tuple[float, float]]:
    """Returns the means over the first and the last span."""
    means = {}
    for name, values in curves.items():
        size = min(span, len(values))
        means[name] = (sum(values[:size]) / size, sum(values[-size:]) / size)
    return means


def table(results: Mapping[str, Mapping[str, list[float]]], span: int) -> str:
    """Returns a Markdown table of every metric, first -> last span."""
    lines = ["| | chunks | " + " | ".join(METRICS) + " |", "| --- " * (len(METRICS) + 2) + "|"]
    for name, curves in results.items():
        cells = [f"{first:.2f} → {last:.2f}" for first, last in summary(curves, span).values()]
        lines.append(f"| {name} | {len(curves['step'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(results: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Plots every metric by chunk index, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.2), constrained_layout=True)
    for axis, metric in zip(axes, METRICS, strict=True):
        for name, curves in results.items():
            chunks = range(1, len(curves[metric]) + 1)
            axis.plot(chunks, curves[metric], label=name, color="black" if name == "truth" else None)
        axis.set(title=metric, xlabel="chunk (160 ms)")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="a folder data set")
    parser.add_argument("--split", default="test")
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--chunks", type=int, default=100, help="length of every answer; 6.25 chunks per second")
    parser.add_argument("--window", type=int, help="past steps in sight, heard ones too; by default the model's")
    parser.add_argument("--span", type=int, default=14, help="chunks of the first and of the last mean")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.1], help="noise levels on the history")
    parser.add_argument("--sampling", nargs="*", default=[], metavar="KEY=VALUE", help="replaced values")
    parser.add_argument("--output", type=Path, default=Path("outputs/drift"))
    options = parser.parse_args(arguments)
    folders = dict(entry.partition("=")[::2] for entry in options.release)
    dialogues = [d for d in read_dialogues(options.data) if d.split == options.split][: options.answers]
    if not dialogues or "" in folders.values():
        sys.exit(f"error: no dialogue of split {options.split} in {options.data}, or a release without NAME=FOLDER")
    results: dict[str, dict[str, list[float]]] = {}
    for name, folder in folders.items():
        release = load_release(Path(folder))
        references = {d.answer.speaker: read_image(d.answer.path, release.size) for d in dialogues}
        questions = [question(release, dialogue) for dialogue in dialogues]
        starts = [start(release, asked) for asked in questions]
        levels = options.levels if release.responder.noise else [0.0]  # a model without noise has no level
        systems = {f"{name}, level {level:g}": level for level in levels}
        for system, level in systems.items():
            results[system] = average(
                [
                    measure(rollout(release, asked, options, level), first, d.answer.speaker, references)
                    for asked, first, d in zip(questions, starts, dialogues, strict=True)
                ]
            )
            print(f"{system}: done", flush=True)
        if "truth" not in results:
            results["truth"] = average(
                [
                    measure(truth(release, d), first, d.answer.speaker, references)
                    for first, d in zip(starts, dialogues, strict=True)
                ]
            )
    print(table(results, options.span))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    settings = {"answers": len(dialogues)} | {name: vars(options)[name] for name in ("chunks", "window", "span")}
    options.output.with_suffix(".json").write_text(json.dumps({"settings": settings, "curves": results}, indent=1))
    options.output.with_suffix(".md").write_text(table(results, options.span))
    plot(results, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
