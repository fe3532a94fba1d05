"""How the stand-in for SyncNet answers when the sound of filmed people is shifted against their pictures: a table.

    python benchmarks/sync_shift.py FOLDER_OF_CLIPS --face version-RFB-320.onnx
    python benchmarks/sync_shift.py FOLDER_OF_CLIPS

Each clip's own sound is moved by so many pictures of 40 ms, later (positive) or sooner, and scored as if it were played
so.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vidchat.bench.clips import is_silent
from vidchat.bench.faces import Centred, Detected
from vidchat.bench.proxy.sync import MouthAndLoudness
from vidchat.data.media.read import Media, picture_size, read_clip
from vidchat.dialogue import Clip

SHIFTS = (-12, -8, -4, -2, 0, 2, 4, 8, 12)


def shifted(media: Media, pictures: int) -> Media:
    """The clip with its sound later by so many pictures; what is missing is silence."""
    samples = pictures * media.sample_rate // media.fps
    sound = torch.roll(media.waveform, samples)
    sound[slice(0, samples) if samples >= 0 else slice(samples, None)] = 0
    return replace(media, waveform=sound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--face", type=Path, help="RFB-320 face detector; else faces are in the middle")
    parser.add_argument("--name", default="*.mp4", help="which clips")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure = MouthAndLoudness(Detected(arguments.face) if arguments.face else Centred())
    print(f"{'Sync r, sound later by':28}" + "".join(f"{shift:7d}" for shift in SHIFTS) + "  Sync-C offset")
    rows = []
    for path in sorted(arguments.folder.glob(arguments.name)):
        media = read_clip(Clip(path, ""), fps=25, size=picture_size(path), sample_rate=16000)
        if is_silent(media.waveform):
            continue
        scores = [measure.compare(measure.read(shifted(media, k)), {}, {}, None) for k in SHIFTS]  # type: ignore[arg-type]
        own = scores[SHIFTS.index(0)]
        rows.append([score["Sync r"] for score in scores])
        figures = "".join(f"{value:7.2f}" for value in rows[-1])
        print(f"{path.stem:28}{figures}{own['Sync-C']:8.2f}{own['offset']:9.0f}")
    print(f"{'mean':28}" + "".join(f"{value:7.2f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
