"""How well a video tokenizer gives back a folder's test clips: PSNR of the frame, the mouth and the eyes.

    python benchmarks/video_tokenizer.py --root outputs/data/dyads --strip outputs/round_trip.png

`motion` is the share of the mouth's variance inside chunks that is given back, 1 - error / variance: 0 for a tokenizer
that gives one frame for all four of a chunk. Beside the round trip: the same with noise on the latents, which is what
a generator's errors look like, and the mean frame of each clip, which is what a tokenizer without motion would give.
Prints a table and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vidchat.data.folder import read_dialogues
from vidchat.data.media.read import read_clip
from vidchat.runtime.sizes import parse_size
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.training.tokenizer_video import psnr, to_frames

# Rows and columns, as shares of the frame, where drawn heads have them.
REGIONS = {"all": (0.0, 1.0, 0.0, 1.0), "mouth": (0.56, 0.77, 0.35, 0.65), "eyes": (0.40, 0.58, 0.29, 0.71)}


def read_frames(root: Path, split: str, clips: int, first: int, frames: int, size: tuple[int, int]) -> Tensor:
    """(B, 3, n, H, W), from clips spread evenly over the split."""
    found = [turn.clip for dialogue in read_dialogues(root) if dialogue.split == split for turn in dialogue.turns]
    chosen = found[:: max(1, len(found) // clips)][:clips]
    media = [read_clip(clip, fps=25, size=size, sample_rate=16000, audio=False).frames for clip in chosen]
    return to_frames(torch.stack([shown[first : first + frames] for shown in media]))


def measure(output: Tensor, frames: Tensor, stride: int) -> dict[str, float]:
    """PSNR in dB by region, and the share of the mouth's motion that is there."""
    decibels = {name: float(psnr(cut(output, name), cut(frames, name))) for name in REGIONS}
    true, shown = (inside_chunks(cut(clips, "mouth"), stride) for clips in (frames, output))
    motion = 1 - (shown - true).square().sum() / true.square().sum()
    return {name: round(value, 2) for name, value in (decibels | {"motion": float(motion)}).items()}


def cut(frames: Tensor, region: str) -> Tensor:
    """The part of frames (..., H, W) where a region of `REGIONS` is."""
    top, bottom, left, right = REGIONS[region]
    height, width = frames.shape[-2:]
    return frames[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def inside_chunks(frames: Tensor, stride: int) -> Tensor:
    """Deviations of frames (B, 3, 4T+1, H, W) from the mean frame of their chunk; chunk 0 is left out."""
    chunks = frames[:, :, 1:].unflatten(2, (-1, stride))
    return chunks - chunks.mean(3, keepdim=True)


@torch.inference_mode()
def rows(tokenizer: VideoTokenizer, frames: Tensor, noise: list[float]) -> dict[str, Tensor]:
    """What is compared with the frames, by name."""
    latents = tokenizer.encode(frames)
    print(f"latents: mean {latents.mean():.3f}, standard deviation {latents.std():.3f}, {tuple(latents.shape)}")
    made = {"mean frame of the clip": frames.mean(2, keepdim=True).expand_as(frames)}
    for level in noise:
        made[f"round trip, noise {level:g}"] = tokenizer.decode(latents + level * torch.randn_like(latents))
    return made


def write_strip(path: Path, rows: list[Tensor], clips: int = 6, columns: int = 8, scale: int = 2) -> None:
    """One frame: for each clip, a line for each of `rows`, every third frame."""
    lines = [
        torch.cat(list(row[clip, :, :: max(1, row.shape[2] // columns)][:, :columns].unbind(1)), dim=2)
        for clip in range(min(clips, len(rows[0])))
        for row in rows
    ]
    array = ((torch.cat(lines, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    image.resize((image.width * scale, image.height * scale)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("checkpoints/demo/video_vae"))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--size", type=parse_size, default=parse_size("96x96"), help="HEIGHTxWIDTH")
    parser.add_argument("--strip", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    frames = read_frames(given.root, given.split, given.clips, 8, 25, given.size)
    tokenizer = StackedVAE.load(given.directory)
    made = rows(tokenizer, frames, [0.0, 0.1, 0.2, 0.3])
    table = {name: measure(output, frames, tokenizer.temporal_stride) for name, output in made.items()}
    heading = f"PSNR in dB of {len(frames)} clips"
    print(f"{heading:32}" + "".join(f"{name:>8}" for name in [*REGIONS, "motion"]))
    for name, values in table.items():
        print(f"{name:32}" + "".join(f"{value:8.2f}" for value in values.values()))
    if given.json:
        given.json.write_text(json.dumps(table, indent=2))
    if given.strip:
        write_strip(given.strip, [frames, made["round trip, noise 0"], made["round trip, noise 0.2"]])


if __name__ == "__main__":
    main()
