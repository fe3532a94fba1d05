"""Speed of a stack of blocks with and without torch.compile: forward and backward, processor seconds.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py [--precision bf16] [--repeats 5]

The shape is that of the backbone of model=tiny: 6 blocks of width 192, 8 sequences of 28 chunks of 17 tokens. With
--device cuda, the seconds are wall time on the GPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch

from vidchat.model.compiled import compile_blocks
from vidchat.model.mask import BlockCausal
from vidchat.model.transformer import Shape, Transformer

BATCH, CHUNKS, TOKENS = 8, 28, 17


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    plain = Transformer(Shape(192, 6, 3, 3, 64, 512)).to(options.device)
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    x = torch.randn(BATCH, CHUNKS * TOKENS, 192, device=options.device)
    blocks = torch.arange(CHUNKS).repeat_interleave(TOKENS)
    positions = torch.zeros(BATCH, CHUNKS * TOKENS, 3, device=options.device)
    positions[..., 0] = blocks
    visible = torch.ones(BATCH, CHUNKS * TOKENS, dtype=torch.bool, device=options.device)

    def step(stack: Transformer) -> float:
        start = clock(options.device)
        with torch.autocast(options.device, torch.bfloat16, enabled=options.precision == "bf16"):
            outputs = stack(x, positions, BlockCausal(blocks, visible))
        outputs.float().square().mean().backward()
        return clock(options.device) - start

    first = step(compiled)
    step(plain)
    pairs = [(step(plain), step(compiled)) for _ in range(options.repeats)]  # alternating, since others use the machine
    ratios = [before / after for before, after in pairs]
    before, after = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{options.precision} on {options.device}: {before:.3f} s eager, {after:.3f} s compiled")
    print(
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} .. {max(ratios):.2f}); the first step took {first:.0f} s"
    )


def clock(device: str) -> float:
    """Returns processor seconds; on a GPU, wall time after its work has finished."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
