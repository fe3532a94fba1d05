"""What scoring costs, measure by measure, beside decoding alone: a table, and JSON.

    python benchmarks/bench.py --pairs 4 --seconds 6 --size 768x480
    python benchmarks/bench.py --video-frames 25 --face version-RFB-320.onnx --json bench.json

Films of moving noise and a tone are written first (they are harder to decode than faces). Seconds are of one core's
work (process time), so that other work on the machine hardly counts; with workers the pairs are shared out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from vidchat.bench.clips import View, read_answer, read_truth
from vidchat.bench.frechet import Gaussian, frechet_distance
from vidchat.bench.pairs import Pair
from vidchat.bench.suite import Backends
from vidchat.data.media.read import write_clip
from vidchat.dialogue import Clip
from vidchat.runtime.sizes import format_size, parse_size


def films(folder: Path, count: int, seconds: float, size: tuple[int, int]) -> list[Pair]:
    """Pairs whose clips are coarse noise that drifts, with audio."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        length = round(25 * seconds)
        coarse = torch.from_numpy(rng.integers(0, 256, size=(1, 3, 12, 12)).astype(np.float32))
        still = F.interpolate(coarse, (size[0] + 64, size[1] + 64), mode="bicubic").clamp(0, 255)[0]
        at = [(round(32 + 30 * np.sin(i / 9 + number)), round(32 + 30 * np.cos(i / 7))) for i in range(length)]
        frames = torch.stack([still[:, y : y + size[0], x : x + size[1]] for y, x in at]).byte()
        audio = 0.1 * torch.sin(torch.arange(length * 640) * 0.05) * torch.from_numpy(rng.random(length).repeat(640))
        for name in ("truth", "made"):
            write_clip(folder / f"{name}{number}.mp4", frames, audio.float(), 25, 16000)
        Image.fromarray(frames[0].permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        truth = Clip(folder / f"truth{number}.mp4", f"person {number}")
        pairs.append(Pair(str(number), truth, truth, folder / f"{number}.png"))
    return pairs


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds of this process's work, and what came of it."""
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def run(pairs: list[Pair], folder: Path, view: View, backends: Backends) -> dict[str, float]:
    """Seconds a pair, by what they were spent on."""
    measures = backends()
    spent: dict[str, float] = {"decode truth and answer": 0.0, **{_name(m): 0.0 for m in measures}}
    rows: dict[str, list[np.ndarray]] = {}
    for pair in pairs:
        seconds, truth = timed(lambda pair=pair: read_truth(pair, view))
        made = Clip(folder / f"made{pair.id}.mp4", "")
        more, found = timed(lambda made=made, truth=truth: read_answer(made, truth, view))
        spent["decode truth and answer"] += seconds + more
        for measure in measures:
            beside = truth if measure.beside else None
            seconds, features = timed(lambda m=measure, f=found, b=beside: m.read(f.media, b))
            spent[_name(measure)] += seconds
            if "rows" in features:
                rows.setdefault(_name(measure), []).append(features["rows"])
    each = {name: seconds / len(pairs) for name, seconds in spent.items()}
    for name, features in rows.items():
        copies = np.concatenate(features * (500 // len(features) + 1))[: 500 * len(features[0])]
        copies = copies + np.random.default_rng(0).normal(size=copies.shape) * 1e-3
        gaussian = Gaussian(copies.shape[1])
        each[f"Fréchet distance of 500 clips, {name} (once)"] = timed(
            lambda c=copies, g=gaussian: frechet_distance(g.update(c), g)
        )[0]
    return each


def _name(measure: object) -> str:
    return type(measure).__name__


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a clip")
    parser.add_argument("--size", type=parse_size, default=parse_size("768x480"), help="HEIGHTxWIDTH")
    parser.add_argument("--video-frames", type=int, help="video frames for PSNR and SSIM; all by default")
    parser.add_argument("--face", type=Path, help="RFB-320 face detector")
    parser.add_argument("--dnsmos", type=Path, help="sig_bak_ovr.onnx")
    parser.add_argument("--json", type=Path, help="write the table here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backends = Backends(face=arguments.face, dnsmos=arguments.dnsmos, video_frames=arguments.video_frames)
    with tempfile.TemporaryDirectory() as folder:
        pairs = films(Path(folder), arguments.pairs, arguments.seconds, arguments.size)
        each = run(pairs, Path(folder), View(arguments.size), backends)
    size = format_size(arguments.size)
    print(f"{arguments.pairs} pairs of {arguments.seconds:g} s at {size}, one core; seconds a pair")
    for name, seconds in each.items():
        print(f"{name:60} {seconds:8.3f}")
    total = sum(seconds for name, seconds in each.items() if "(once)" not in name)
    decode = each["decode truth and answer"]
    print(f"{'all':60} {total:8.3f}   {total / decode:.1f} x decoding alone")
    all_pairs, decoding = (500 * seconds / 2 / 60 for seconds in (total, decode))
    print(f"500 pairs on two cores, reckoned: {all_pairs:.1f} min; decoding alone {decoding:.1f} min")
    if arguments.json:
        arguments.json.write_text(json.dumps({**vars(arguments), "each": each}, default=str, indent=1))


if __name__ == "__main__":
    main()
