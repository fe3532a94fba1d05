"""An hour of conversation: the cost of a step, memory and drift, by minute.

    python benchmarks/hour.py [--release checkpoints/demo] [--reference FACE.png] [--initiator CLIP.mp4] [--minutes 60]
        [--report 1 30 60] [--speaking] [--device cpu] [--output outputs/hour.json]

The responder is generated at every step (full duplex), while the initiator's clip is heard and is followed by as much
silence, again and again. With --speaking nothing is heard. Reports of each minute asked for:

    ms            median time of a step, of which there are 6.25 a second
    MB            largest memory of the process so far
    psnr          of the frames to the reference, in dB: falls as the frames decay (and with real motion)
    latent_mean   |spatial mean of the latents, minus the reference's|, averaged over channels: a drift in colour
    latent_std    spatial deviation of the latents, over the reference's: 1 is right, less washed out, more burnt
    step          RMS change of the latents from one chunk to the next: 0 is frozen
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

import torch

from vidchat.dialogue import Clip
from vidchat.generation.answer import Question, read_question
from vidchat.generation.conversation import Conversation, GeneratedChunk, GenerationSettings
from vidchat.generation.heard import HeardStream, hear_clip
from vidchat.generation.respond import move
from vidchat.model.generation_state import Chunk
from vidchat.release import Release, load_release
from vidchat.shipped import find


def heard_chunks(release: Release, path: Path, device: str) -> list[Chunk | None]:
    """Returns the chunks of a clip, and as many steps of silence."""
    stream, clock = HeardStream(release.video_vae, release.audio_codec, release.clock, device), release.clock
    chunks = [heard.chunk for heard in hear_clip(Clip(path, ""), stream, clock, release.size, audio=True)]
    return [*chunks, *[None] * len(chunks)]


def measure(
    chunk: GeneratedChunk, before: torch.Tensor, reference: torch.Tensor, still: torch.Tensor
) -> dict[str, float]:
    """Returns the metrics of a chunk, given the latents before it, and the reference as latents and as a frame."""
    latents, first = chunk.latents[0].flatten(1), reference.flatten(1)
    error = (chunk.frames[0] - still).square().mean().clamp(min=1e-6)
    return {
        "psnr": float(10 * torch.log10(4 / error)),
        "latent_mean": float((latents.mean(1) - first.mean(1)).abs().mean()),
        "latent_std": float(latents.std(1).mean() / first.std(1).mean().clamp(min=1e-6)),
        "step": float((chunk.latents[0] - before).square().mean().sqrt()),
    }


def run(release: Release, options: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Ticks for the given minutes; returns the means of each reported minute."""
    question = Question(find(options.reference), text="hello" if "text" in release.conditions else None)
    batch = read_question(release, question, options.device)
    parts = (release.responder, release.video_vae, release.audio_codec)
    conversation = Conversation(*parts, batch, GenerationSettings(1, ends=False), release.graphs)
    reference = batch.latents[0, 0]
    with torch.no_grad():
        still = release.video_vae.decode(batch.latents.transpose(1, 2))[0]
    silent = options.speaking or not release.hears
    heard = itertools.cycle([None] if silent else heard_chunks(release, find(options.initiator), options.device))
    per_minute = round(60 * release.clock.chunks_per_second)
    before, results, chunk = reference, {}, None
    for minute in range(1, options.minutes + 1):
        rows = []
        for _ in range(per_minute):
            start = time.perf_counter()
            chunk = conversation.tick(next(heard) if chunk else None)
            assert chunk is not None, "ends are off"
            row = {"ms": 1000 * (time.perf_counter() - start)}
            if minute in options.report:
                rows.append(row | measure(chunk, before, reference, still))
            before = chunk.latents[0]
        if rows:
            result = {name: mean(row[name] for row in rows) for name in rows[0]}
            result["ms"] = median(row["ms"] for row in rows)
            results[minute] = result | {"MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
            print(f"minute {minute:3}  " + "  ".join(f"{k} {v:.3g}" for k, v in results[minute].items()), flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default="checkpoints/demo")
    parser.add_argument("--reference", default="examples/reference.png")
    parser.add_argument("--initiator", default="examples/initiator.mp4")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--report", type=int, nargs="+", default=[1, 30, 60], help="minutes to report")
    parser.add_argument("--speaking", action="store_true", help="hear nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/hour.json"))
    options = parser.parse_args(arguments)
    release = load_release(options.release)
    move(release, options.device)
    results = run(release, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
