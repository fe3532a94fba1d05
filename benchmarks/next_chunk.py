"""Quality of the next chunk after the true past: the effect of a change of the spatial transformer.

    python benchmarks/next_chunk.py --release masked=outputs/a/release --release set_causal=outputs/b/release \
        --data outputs/data/dyads [--split test] [--answers 24] [--chunks 14] [--sets 6 16] [--precision fp32 bf16]

In a free rollout two models soon answer differently, so their difference says little about either. Here each chunk
follows the true ones, as in training:

    loss N      the flow loss of all tokens, predicted as at generation: in N sets, with the previous sets true, and
                without noise on the history (2 draws of orders, with 4 draws of times each)
    psnr N      PSNR in dB of the frames of chunks drawn in N sets, to the tokenizer's round trip of the true chunks
    rollout N   the same, with each chunk drawn after the model's own chunks

Orders, times and noise are the same for all releases, whether or not draws share times in training. Every row but the
first is followed by its difference from the first, with the standard error over answers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.data.folder import read_dialogues
from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import read_clip
from vidchat.dialogue import Dialogue
from vidchat.generation.answer import Question, read_question
from vidchat.generation.heard import HeardStream, hear_clip
from vidchat.model.generation_state import Chunk
from vidchat.model.precision import to_bf16
from vidchat.model.spatial import SpatialContext, SpatialTransformer, draw_order, set_sizes
from vidchat.profiling.cost import Workload, random_batch
from vidchat.release import Release, load_release


def read(release: Release, dialogue: Dialogue, chunks: int) -> ChunkBatch:
    """Reads a question with its true answer."""
    text = (dialogue.answer.text or "") if "text" in release.conditions else None
    batch, clock = read_question(release, Question(dialogue.answer.path, text=text)), release.clock
    media = read_clip(dialogue.answer, fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)
    count = min(clock.chunks(len(media.frames)), chunks)
    latents = release.video_vae.encode(from_bytes(media.frames[: clock.frames(count)])).transpose(1, 2)
    asked: list[Chunk] = []
    if release.hears and dialogue.question:
        codec = release.audio_codec if release.responder.depth is not None else None
        stream = HeardStream(release.video_vae, codec, clock)
        heard = hear_clip(dialogue.question, stream, clock, release.size, codec is not None)
        asked = [step.chunk for step in heard]
    work = Workload(latents.shape[3:], count, len(asked), "dialogue" if asked else "single")
    batch = replace(random_batch(release.responder, work), conditions=batch.conditions)
    said = [place.chunk for place in work.columns()[0]]
    batch.latents = latents[:, said]
    if asked:
        batch.heard_latents = torch.stack([chunk.latents for chunk in asked], dim=1)
    if batch.codes is not None:
        first = clock.sample_rate // clock.fps  # audio starts with frame 1
        waveform = media.waveform[None, first : first + clock.samples(count)]
        codes = release.audio_codec.encode(waveform).unflatten(1, (count, -1))
        batch.codes = torch.cat([codes[:, :1], codes], dim=1)[:, said]
        batch.heard_codes = torch.stack([chunk.codes for chunk in asked], dim=1) if asked else None
    return batch


def psnr(release: Release, drawn: Tensor, batch: ChunkBatch) -> float:
    """Returns the PSNR in dB of drawn chunks (1, T, C, h, w), averaged over frames."""
    first = batch.latents[:, :1]
    frames, true = (
        to_bytes(release.video_vae.decode(torch.cat([first, rest], dim=1).transpose(1, 2))[0, :, 1:]).float()
        for rest in (drawn, batch.latents[:, -drawn.shape[1] :])
    )
    errors = (frames - true).square().mean(dim=(0, 2, 3)).clamp(min=1e-3)
    return float((10 * torch.log10(255**2 / errors)).mean())


def draw(release: Release, batch: ChunkBatch, sets: int, own: bool) -> Tensor:
    """Draws every chunk after the true ones, or after the model's `own`; returns latents (1, T, C, h, w)."""
    model, generator = release.responder, torch.Generator().manual_seed(0)
    sampling = replace(model.sampling, sets=sets)
    count = 0 if batch.heard_steps is None else batch.heard_steps.shape[1]
    state, drawn = model.start(batch, batch.latents.shape[1] + count), []
    for t in range(count):
        heard = Chunk(batch.heard_latents[:, t], None if batch.heard_codes is None else batch.heard_codes[:, t])
        still = Chunk(batch.latents[:, 1], still=True) if t == count - 1 else None
        state = model.read_step(state, still, heard)
    for k in range(1 + bool(count), batch.latents.shape[1]):
        chunk = model.generate_chunk(state, sampling, generator)
        drawn.append(chunk.latents)
        true = Chunk(batch.latents[:, k], None if batch.codes is None else batch.codes[:, k])
        state = model.read_step(state, chunk if own else true)
    return torch.stack(drawn, dim=1)


def pass_in_sets(spatial: SpatialTransformer, sets: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """`spatial.training_pass`, but with every token predicted as at generation."""

    def training_pass(context: SpatialContext, tokens: Tensor, count_seed: int | None = None) -> tuple[Tensor, Tensor]:
        order, filled, conditions = draw_order(*tokens.shape[:2], tokens.device), 0, []
        decode = spatial.start_decoding(context, order)
        for size in set_sizes(tokens.shape[1], sets):
            conditions.append(decode(tokens, filled, size))
            filled += size
        return torch.cat(conditions, dim=1), order

    return training_pass


@torch.no_grad()
def measure(release: Release, batch: ChunkBatch, sets: Sequence[int]) -> dict[str, float]:
    """Returns the metrics of one answer."""
    model, row = release.responder, {}
    for count in sets:
        losses = []
        for seed in range(2):
            torch.manual_seed(seed)
            training_pass = pass_in_sets(model.spatial, count) if model.spatial else None
            with patch.object(model.spatial, "training_pass", training_pass) if training_pass else nullcontext():
                losses.append(float(model.loss(batch)["video"]))
        row[f"loss {count}"] = sum(losses) / len(losses)
    for count in sets:
        row[f"psnr {count}"] = psnr(release, draw(release, batch, count, own=False), batch)
        row[f"rollout {count}"] = psnr(release, draw(release, batch, count, own=True), batch)
    return row


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Returns a Markdown table of the means, with differences from the first row."""
    first = next(iter(results.values()))
    lines = ["| | " + " | ".join(first[0]) + " |", "| --- " * (len(first[0]) + 1) + "|"]
    for name, rows in results.items():
        mean = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        lines.append(f"| {name} | " + " | ".join(f"{value:.3f}" for value in mean.values()) + " |")
        if rows is first:
            continue
        cells = []
        for key in mean:
            gaps = torch.tensor([row[key] - other[key] for row, other in zip(rows, first, strict=True)])
            cells.append(f"{gaps.mean():+.3f} ± {gaps.std() / len(gaps) ** 0.5:.3f}")
        lines.append("| difference | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, required=True, help="a folder data set with its clips")
    parser.add_argument("--split", default="test")
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--chunks", type=int, default=14, help="largest number of chunks of an answer")
    parser.add_argument("--sets", type=int, nargs="+", default=[6, 16])
    parser.add_argument("--precision", choices=("fp32", "bf16"), nargs="+", default=["fp32"])
    options = parser.parse_args(arguments)
    folders = dict(entry.partition("=")[::2] for entry in options.release)
    dialogues = [d for d in read_dialogues(options.data) if d.split == options.split][: options.answers]
    if not dialogues or "" in folders.values():
        sys.exit(f"error: no dialogue of split {options.split} in {options.data}, or a release without NAME=FOLDER")
    results: dict[str, list[dict[str, float]]] = {}
    for name, folder in folders.items():
        release = load_release(Path(folder))
        flow = release.responder.flow
        flow.shape = replace(flow.shape, draws=4, noises=1)
        with torch.no_grad():
            batches = [read(release, dialogue, options.chunks) for dialogue in dialogues]
        for precision in sorted(set(options.precision), reverse=True):  # fp32 first, since the cast to bf16 is in place
            if precision == "bf16":
                to_bf16(release.responder)
            results[f"{name}, {precision}"] = [measure(release, batch, options.sets) for batch in batches]
    print(f"{len(dialogues)} answers of {options.split}")
    print(table(results))


if __name__ == "__main__":
    main()
