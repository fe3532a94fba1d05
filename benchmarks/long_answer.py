"""Cost of a chunk by the length of the answer: chunk 500 against chunk 20, with a full window at both.

    OMP_NUM_THREADS=1 python benchmarks/long_answer.py [--chunks 500] [--window 16] [--output FILE]

A random model=tiny with audio on demo-sized latents generates two answers while it hears, one at chunk 20 and one at
chunk 500, in alternation, so that a busy machine slows both. Prints medians of processor seconds; the target is a ratio
of at most 1.05, which a cache that grows, or a window without effect, misses.
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
from vidchat.conditions.base import Conditioning
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.responder import Responder

ROOT = Path(__file__).parents[1]


def a_chunk() -> Chunk:
    return Chunk(torch.randn(1, 48, 6, 6), torch.randint(256, (1, 8, 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--sets", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model: Responder = instantiate(
        OmegaConf.load(ROOT / "configs" / "model" / "tiny.yaml"),
        tokens=TokenShapes(LatentShape(48, 4), CodeShape(8, 4, 256)),
        conditions=Conditioning(hears=True),
    )
    model.eval()
    batch = ChunkBatch.start(torch.randn(1, 48, 6, 6))
    sampling = ChunkSampling(sets=options.sets, flow_steps=options.steps)
    times: dict[str, dict[str, list[float]]] = {age: {"write": [], "read": []} for age in ("early", "late")}
    with torch.no_grad():
        states = {age: model.start(batch, options.window) for age in ("early", "late")}
        for age, chunks in (("early", 20), ("late", options.chunks)):
            for _ in range(chunks):  # random chunks cost the same as generated ones
                states[age] = model.read_step(states[age], a_chunk(), a_chunk())
        for _ in range(options.repeats):
            for age, state in states.items():
                start = time.process_time()
                said = model.generate_chunk(state, sampling)
                written = time.process_time()
                states[age] = model.read_step(state, said, a_chunk())
                times[age]["write"].append(written - start)
                times[age]["read"].append(time.process_time() - written)
    result: dict[str, float] = {"chunks": options.chunks, "window": options.window, "repeats": options.repeats}
    for kind in ("read", "write", "chunk"):
        kinds = ("read", "write") if kind == "chunk" else (kind,)
        early, late = (
            statistics.median(map(sum, zip(*(times[age][each] for each in kinds), strict=True))) for age in times
        )
        result |= {f"{kind}_early_ms": early * 1e3, f"{kind}_late_ms": late * 1e3, f"{kind}_ratio": late / early}
        print(f"{kind:6} from chunk 20: {early * 1e3:6.2f} ms   from chunk {options.chunks}: {late * 1e3:6.2f} ms   "
              f"ratio {late / early:.3f}")  # fmt: skip
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
