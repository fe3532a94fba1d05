"""Does a chunk cost more the longer the answer? Chunk 500 against chunk 20, the window full at both.

    OMP_NUM_THREADS=1 python benchmarks/long_answer.py [--chunks 500] [--window 16] [--output FILE]

A random model=tiny with sound on demo-sized latents. The times are processor seconds, medians over the chunks around
20 and around 500; the target is a ratio of at most 1.05. A cache that grows, or a window that is not one, fails it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vidchat.batch import ChunkBatch
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.conditions import ConditionSwitches
from vidchat.model.reading import ChunkSampling
from vidchat.model.responder import Responder

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Responder = instantiate(
        OmegaConf.load(ROOT / "configs" / "model" / "tiny.yaml"),
        tokens=TokenShapes(LatentShape(48, 4), CodeShape(8, 4, 256)),
        conditions=ConditionSwitches(turns=True),
    )
    model.eval()
    turns = torch.ones(1, 14, dtype=torch.bool)
    batch = ChunkBatch(
        torch.randn(1, 1, 48, 6, 6), turns[:, :0], turn_latents=torch.randn(1, 14, 48, 6, 6),
        turn_codes=torch.randint(256, (1, 14, 8, 4)), turn_roles=torch.zeros(1, 14, dtype=torch.long), turn_mask=turns,
    )  # fmt: skip
    sampling = ChunkSampling(sets=options.sets, flow_steps=options.steps)
    read_s, write_s = [], []
    with torch.no_grad():
        reading = model.begin(batch, options.window)
        for _ in range(options.chunks):
            start = time.process_time()
            latents, codes = model.write_chunk(reading, sampling)
            written = time.process_time()
            reading = model.read_chunk(reading, latents, codes)
            write_s.append(written - start)
            read_s.append(time.process_time() - written)
    early, late = slice(options.window, options.window + 20), slice(options.chunks - 20, options.chunks)
    result: dict[str, float] = {"chunks": options.chunks, "window": options.window}
    both = [read + write for read, write in zip(read_s, write_s, strict=True)]
    for name, times in (("read", read_s), ("write", write_s), ("chunk", both)):
        first, last = statistics.median(times[early]), statistics.median(times[late])
        result |= {f"{name}_early_ms": first * 1e3, f"{name}_late_ms": last * 1e3, f"{name}_ratio": last / first}
        print(f"{name:6} chunk {early.start}..{early.stop}: {first * 1e3:6.2f} ms   last 20 of {options.chunks}: "
              f"{last * 1e3:6.2f} ms   ratio {last / first:.3f}")  # fmt: skip
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
