"""A small folder data set of moving colours and tones, and tokenizers that show what they were given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.data.loading.selection import Selection
from vidchat.data.media.write import write_clip

SIZE = (16, 16)


class Vae:
    """A causal stand-in: a latent is the mean colour of its chunk's last frame, at half the size."""

    temporal_stride = 4

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, frames: Tensor) -> Tensor:
        self.calls += 1
        assert frames.shape[2] % 4 == 1
        assert -1 <= float(frames.min()) <= float(frames.max()) <= 1
        return frames[:, :, ::4, ::2, ::2].contiguous()

    def fingerprint(self) -> str:
        return "vae"

    def to(self, device: Any) -> Vae:
        return self


class Codec:
    """A stand-in whose codes are the loudness of a frame, and its number in the waveform."""

    sample_rate, hop = 16000, 320

    def encode(self, waveform: Tensor) -> Tensor:
        frames = waveform.unflatten(1, (-1, self.hop))
        loudness = frames.abs().mean(2).mul(200).long()
        return torch.stack([loudness, torch.arange(frames.shape[1]).expand_as(loudness)], dim=2)

    def fingerprint(self) -> str:
        return "codec"

    def to(self, device: Any) -> Codec:
        return self


class Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())


def selection(max_chunks: int = 25, max_steps: int | None = None, **condition: Any) -> Selection:
    """What samples are made from, by the keys of a config's `condition` node."""
    return Selection.read({"initiator": False, **condition}, max_chunks, max_steps)


def brightness(frames: int) -> Tensor:
    """A level for each frame that tells its number."""
    return torch.arange(frames) * 4 + 20


def film(path: Path, frames: int, loud_from: int = 0, audio: bool = True) -> None:
    """Frame k has the brightness 4k + 20; a tone sets in with frame `loud_from`."""
    levels = brightness(frames).clamp(max=255)
    waveform = torch.sin(torch.arange(frames * 640) * 0.3) * 0.5
    waveform[: loud_from * 640] = 0
    write_clip(
        path, levels[:, None, None, None].expand(-1, 3, *SIZE).to(torch.uint8), waveform if audio else None, 25, 16000
    )


def make_folder(root: Path, splits: list[str], frames: int = 21, **more: Any) -> Path:
    """A dialogue for each entry of `splits`, question and answer; their texts are `qK` and `aK`."""
    lines = []
    for k, split in enumerate(splits):
        for side in ("q", "a"):
            film(root / f"{side}{k}.mp4", frames + 4 * (k % 3) + k % 2)
        turns = [
            {"role": "initiator", "speaker": f"i{k}", "clip": f"q{k}.mp4", "text": f"q{k}"},
            {"role": "responder", "speaker": f"r{k % 2}", "clip": f"a{k}.mp4", "text": f"a{k}", "scores": {"dover": k}},
        ]
        lines.append({"id": f"d{k}", "split": split, "turns": turns, **more})
    write_manifest(root, lines)
    return root


def write_manifest(root: Path, lines: list[dict[str, Any]]) -> None:
    (root / "dialogues.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
