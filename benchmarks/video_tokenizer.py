"""Quality of a video tokenizer's round trip of test clips: PSNR of the frame, the mouth and the eyes.

    python benchmarks/video_tokenizer.py --root outputs/data/dyads --strip outputs/round_trip.png

`motion` is the reconstructed share of the mouth's variance inside chunks, 1 - error / variance: 0 for a tokenizer that
decodes the same frame four times. Besides the round trip, the table has the round trip with noise on the latents, which
resembles the errors of a generator, and the mean frame of each clip, the output of a tokenizer without motion. Prints a
table and writes JSON.
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

# Top, bottom, left and right edge of each region of drawn heads, as shares of the frame.
REGIONS = {"all": (0.0, 1.0, 0.0, 1.0), "mouth": (0.56, 0.77, 0.35, 0.65), "eyes": (0.40, 0.58, 0.29, 0.71)}


def read_frames(root: Path, split: str, clips: int, first: int, frames: int, size: tuple[int, int]) -> Tensor:
    """Reads frames (B, 3, n, H, W) of clips spread evenly over the split."""
    all_clips = [turn.clip for dialogue in read_dialogues(root) if dialogue.split == split for turn in dialogue.turns]
    chosen = all_clips[:: max(1, len(all_clips) // clips)][:clips]
    media = [read_clip(clip, fps=25, size=size, sample_rate=16000, audio=False).frames for clip in chosen]
    return to_frames(torch.stack([clip[first : first + frames] for clip in media]))


def measure(output: Tensor, frames: Tensor, stride: int) -> dict[str, float]:
    """Returns the PSNR in dB of each region, and the reconstructed share of the mouth's motion."""
    decibels = {name: float(psnr(cut(output, name), cut(frames, name))) for name in REGIONS}
    true, decoded = (inside_chunks(cut(clips, "mouth"), stride) for clips in (frames, output))
    motion = 1 - (decoded - true).square().sum() / true.square().sum()
    return {name: round(value, 2) for name, value in (decibels | {"motion": float(motion)}).items()}


def cut(frames: Tensor, region: str) -> Tensor:
    """Crops frames (..., H, W) to a region of `REGIONS`."""
    top, bottom, left, right = REGIONS[region]
    height, width = frames.shape[-2:]
    return frames[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def inside_chunks(frames: Tensor, stride: int) -> Tensor:
    """Returns deviations of frames (B, 3, 4T+1, H, W) from the mean frame of their chunk, without chunk 0."""
    chunks = frames[:, :, 1:].unflatten(2, (-1, stride))
    return chunks - chunks.mean(3, keepdim=True)


@torch.inference_mode()
def rows(tokenizer: VideoTokenizer, frames: Tensor, noise: list[float]) -> dict[str, Tensor]:
    """Returns the outputs (B, 3, n, H, W) to compare with the frames, by name."""
    latents = tokenizer.encode(frames)
    print(f"latents: mean {latents.mean():.3f}, standard deviation {latents.std():.3f}, {tuple(latents.shape)}")
    outputs = {"mean frame of the clip": frames.mean(2, keepdim=True).expand_as(frames)}
    for level in noise:
        outputs[f"round trip, noise {level:g}"] = tokenizer.decode(latents + level * torch.randn_like(latents))
    return outputs


def write_strip(path: Path, rows: list[Tensor], clips: int = 6, columns: int = 8, scale: int = 2) -> None:
    """Writes one image with a line for each clip and each of `rows`, showing every third frame."""
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
    options = parser.parse_args()
    torch.manual_seed(0)
    frames = read_frames(options.root, options.split, options.clips, 8, 25, options.size)
    tokenizer = StackedVAE.load(options.directory)
    outputs = rows(tokenizer, frames, [0.0, 0.1, 0.2, 0.3])
    table = {name: measure(output, frames, tokenizer.temporal_stride) for name, output in outputs.items()}
    heading = f"PSNR in dB of {len(frames)} clips"
    print(f"{heading:32}" + "".join(f"{name:>8}" for name in [*REGIONS, "motion"]))
    for name, values in table.items():
        print(f"{name:32}" + "".join(f"{value:8.2f}" for value in values.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2))
    if options.strip:
        write_strip(options.strip, [frames, outputs["round trip, noise 0"], outputs["round trip, noise 0.2"]])


if __name__ == "__main__":
    main()
