"""A benchmark folder with short clips of a mouth that moves with the audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vidchat.bench.pairs import CANDIDATES, PAIRS, Pair, read_pairs
from vidchat.data.media.read import write_clip

FRAMES = 40


def talking_clip(seed: int, frames: int = FRAMES, side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a face of random colours whose mouth opens with the audio: (n, 3, side, side) uint8, (n * 640,) float."""
    rng = np.random.default_rng(seed)
    level = np.clip(np.convolve(rng.random(frames) > 0.55, np.ones(2) / 2, "same"), 0, 1)
    audio = np.repeat(level, 640) * np.sin(np.arange(frames * 640) * (0.05 + 0.01 * (seed % 7))) * 0.3
    face = rng.integers(60, 200, size=(3, 1, 1)) + 25 * rng.standard_normal((3, side // 6, side // 6)).repeat(
        6, 1
    ).repeat(6, 2)
    drawn = np.repeat(face[None], frames, 0)
    for frame, opening in zip(drawn, level, strict=True):
        height = round(float(opening) * side * 0.12)
        frame[:, int(0.62 * side) : int(0.62 * side) + height, int(0.38 * side) : int(0.62 * side)] = 10
    return torch.from_numpy(np.clip(drawn, 0, 255).astype(np.uint8)), torch.from_numpy(audio.astype(np.float32))


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark folder with four pairs by four people."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("bench")
    lines, candidates = [], []
    for index in range(4):
        frames, audio = talking_clip(index)
        write_clip(folder / f"truth{index}.mp4", frames, audio, 25, 16000)
        write_clip(folder / f"ask{index}.mp4", *talking_clip(50 + index, 12), 25, 16000)
        Image.fromarray(frames[0].permute(1, 2, 0).numpy()).save(folder / f"face{index}.png")
        lines.append({
            "id": f"p{index}", "reference": f"face{index}.png",
            "initiator": {"clip": f"ask{index}.mp4", "speaker": "asker", "text": "well?"},
            "truth": {"clip": f"truth{index}.mp4", "speaker": f"person {index}", "text": "yes </script> & so"},
        })  # fmt: skip
        replies = [{"text": text, "worth": score} for text, score in (("yes", 1.0), ("so", 0.6), ("no", 0.2))]
        candidates.append({"id": f"p{index}", "candidates": replies})
    for name, entries in ((PAIRS, lines), (CANDIDATES, candidates)):
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture
def pairs(bench: Path) -> list[Pair]:
    return read_pairs(bench)
