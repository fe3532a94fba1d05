"""How the stand-in for SyncNet answers when the audio of filmed people is shifted against their frames: a table.

    python benchmarks/sync_shift.py FOLDER_OF_CLIPS --face version-RFB-320.onnx
    python benchmarks/sync_shift.py FOLDER_OF_CLIPS

Each clip's own audio is moved by so many frames of 40 ms, later (positive) or sooner, and scored as if it were played
so. Then the clips are cut into pieces of 3 s: how often does the mean curve of so many of them peak where it should?
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from vidchat.bench.clips import is_silent
from vidchat.bench.faces import CentredFace, FaceDetector
from vidchat.bench.proxy.sync import MAX_LAG, MouthAndLoudness
from vidchat.data.media.read import Media, frame_size, read_clip
from vidchat.dialogue import Clip

SHIFTS = (-12, -8, -4, -2, -1, 0, 1, 2, 4, 8, 12)
PIECE = 75  # frames
COUNTS = (1, 2, 4, 8, 16, 32)
DRAWS = 2000


def shifted(media: Media, frames: int) -> Media:
    """The clip with its audio later by so many frames; what is missing is silence."""
    samples = frames * media.sample_rate // media.fps
    audio = torch.roll(media.waveform, samples)
    audio[slice(0, samples) if samples >= 0 else slice(samples, None)] = 0
    return replace(media, waveform=audio)


def pieces(media: Media) -> list[Media]:
    """The clip cut into pieces of `PIECE` frames, as nearly as can be; silent ones are left out."""
    length = len(media.frames)
    edges = np.linspace(0, length, max(1, round(length / PIECE)) + 1).astype(int)
    samples = media.sample_rate // media.fps
    cut = [
        replace(media, frames=media.frames[a:b], waveform=media.waveform[a * samples : b * samples])
        for a, b in pairwise(edges)
    ]
    return [piece for piece in cut if not is_silent(piece.waveform)]


def print_counts(curves: np.ndarray) -> None:
    """How often the mean of so many curves (n, lags) peaks within one and two frames of 0."""
    rng = np.random.default_rng(0)
    print(f"\n{'pieces of 3 s':28}" + "".join(f"{count:7d}" for count in COUNTS) + f"   (of {len(curves)})")
    peaks = {
        count: np.array(
            [curves[rng.integers(len(curves), size=count)].mean(0).argmax() - MAX_LAG for _ in range(DRAWS)]
        )
        for count in COUNTS
    }
    for near in (1, 2):
        shares = "".join(f"{np.mean(np.abs(at) <= near):7.2f}" for at in peaks.values())
        print(f"{f'mean peaks within {near} of 0':28}{shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--face", type=Path, help="RFB-320 face detector; else faces are in the middle")
    parser.add_argument("--name", default="*.mp4", help="which clips")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure = MouthAndLoudness(FaceDetector(arguments.face) if arguments.face else CentredFace())
    print(f"{'Sync r, audio later by':28}" + "".join(f"{shift:7d}" for shift in SHIFTS) + "  Sync-C offset")
    rows, curves = [], []
    for path in sorted(arguments.folder.glob(arguments.name)):
        media = read_clip(Clip(path, ""), fps=25, size=frame_size(path), sample_rate=16000)
        if is_silent(media.waveform):
            continue
        scores = [measure.compare(measure.read(shifted(media, k)), {}, {}, None) for k in SHIFTS]  # type: ignore[arg-type]
        own = scores[SHIFTS.index(0)]
        curves += [measure.read(piece)["correlation"] for piece in pieces(media)]
        rows.append([score["Sync r"] for score in scores])
        figures = "".join(f"{value:7.2f}" for value in rows[-1])
        print(f"{path.stem:28}{figures}{own['Sync-C']:8.2f}{own['offset']:9.0f}")
    print(f"{'mean':28}" + "".join(f"{value:7.2f}" for value in np.mean(rows, axis=0)))
    print_counts(np.array(curves))


if __name__ == "__main__":
    main()
