"""Overfitting test: trains on a single dialogue and compares the answer with the truth.

    python benchmarks/overfit.py --initiator A.mp4 --responder B.mp4 [--steps 600] [--output outputs/overfit]

Prints the PSNR of the generated clip and of the tokenizers' round trip of the true answer to the truth and to each
other, and the share of generated codes that equal the true ones. Writes no frames except the generated clip.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from vidchat.data.media.pixels import from_bytes, to_bytes
from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.generation.answer import Question, answer
from vidchat.generation.conversation import GenerationSettings
from vidchat.model.depth import CodeSampling
from vidchat.model.generation_state import ChunkSampling
from vidchat.release import load_release

ROOT = Path(__file__).parents[1]


def make_pair(folder: Path, initiator: Path, responder: Path) -> None:
    """Writes a folder data set with one dialogue, in both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(initiator, folder / "a.mp4")
    shutil.copyfile(responder, folder / "b.mp4")
    turns = [
        {"role": "initiator", "speaker": "a", "clip": "a.mp4"},
        {"role": "responder", "speaker": "b", "clip": "b.mp4"},
    ]
    lines = [json.dumps({"id": split, "split": split, "turns": turns}) for split in ("train", "val")]
    (folder / "dialogues.jsonl").write_text("\n".join(lines) + "\n")


def psnr(a: Tensor, b: Tensor) -> float:
    """Returns the PSNR in dB of uint8 frames (n, 3, H, W), over their common length."""
    length = min(len(a), len(b))
    error = (a[:length].float() - b[:length].float()).square().mean()
    return float(10 * torch.log10(255**2 / error))


def measure(release_folder: Path, pair: Path, output: Path) -> dict[str, float]:
    """Answers the pair's initiator and compares the answer with the truth."""
    release = load_release(release_folder)
    clock = release.clock
    truth = read_clip(Clip(pair / "b.mp4", "b"), fps=clock.fps, size=release.size, sample_rate=clock.sample_rate)
    chunks = min(clock.chunks(len(truth.frames)), 14)
    frames = truth.frames[: clock.frames(chunks)]
    with torch.no_grad():
        latents = release.video_vae.encode(from_bytes(frames))
        round_trip = to_bytes(release.video_vae.decode(latents)[0].transpose(0, 1))[1:]
        first = clock.sample_rate // clock.fps
        codes = release.audio_codec.encode(truth.waveform[None, first : first + clock.samples(chunks)])
    sampling = ChunkSampling(sets=6, flow_steps=10, temperature=0.5, codes=CodeSampling(temperature=0))
    question = Question(reference=pair / "b.mp4", initiator=pair / "a.mp4")
    settings = GenerationSettings(chunks=chunks, sampling=sampling, ends=False)
    answer_chunks = list(answer(release, question, settings, output / "answer.mp4"))
    generated = torch.cat([to_bytes(chunk.frames[0].transpose(0, 1)) for chunk in answer_chunks])
    drawn = torch.cat([chunk.codes for chunk in answer_chunks if chunk.codes is not None], dim=1)
    still = frames[:1].expand_as(frames[1:])
    return {
        "psnr of the still reference to the truth": psnr(still, frames[1:]),
        "psnr of the round trip to the truth": psnr(round_trip, frames[1:]),
        "psnr of the generated clip to the truth": psnr(generated, frames[1:]),
        "psnr of the generated clip to the round trip": psnr(generated, round_trip),
        "share of generated codes that are the true ones": float((drawn == codes).float().mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initiator", type=Path, required=True)
    parser.add_argument("--responder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "overfit")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    options = parser.parse_args()
    output = options.output.resolve()
    make_pair(output / "data", options.initiator, options.responder)
    command = [sys.executable, "train.py", "stage=sft_dyadic", "data=folder", f"data.root={output / 'data'}"]
    command += [f"output_dir={output / 'run'}", f"stage.steps={options.steps}", "data.batch_size=2"]
    command += ["stage.optimizer.lr=1e-3", "model.noise=null", "condition.drop=0", "callbacks={}", "logger=none"]
    command += ["data.max_chunks=14", "trainer.val_check_interval=100000"]
    subprocess.run([*command, *options.overrides], cwd=ROOT, check=True)
    result = measure(output / "run" / "release", output / "data", output)
    (output / "overfit.json").write_text(json.dumps(result, indent=1))
    for name, value in result.items():
        print(f"{name:50} {value:.2f}" if "psnr" not in name else f"{name:50} {value:.1f} dB")


if __name__ == "__main__":
    main()
