"""Speed beside NOVA (arXiv 2412.14169), the most similar public model: same shapes, same run, in alternation.

    git clone https://github.com/baaivision/NOVA
    OMP_NUM_THREADS=1 NOVA_REPO=NOVA python benchmarks/nova.py [--width 192] [--layers 4 8] [--frames 3] [--output FILE]

NOVA's code runs unchanged from NOVA_REPO; none of it is copied. All models have a backbone and a spatial transformer of
the same width and depth, a head of the same width and depth, 256 text features and 2 more, the same latents, batch and
dtype, and no audio. The share of masked tokens is fixed at its mean, 0.867. A training step is forward, backward and
AdamW; a generated frame is one forward pass over the last frame and the drawing of the next.

`ours, as NOVA` is the same model as NOVA's, trained on the same draws. In `ours`, the four draws of a token share their
time (noises=4): the same model, with cheaper training. `ours, set-causal` is another model: its spatial transformer
reads each visual token once, where NOVA's reads all tokens again for each set; its training step predicts all tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import ConditionValues
from vidchat.conditions.base import Conditioning
from vidchat.conditions.thinker import ThinkerFeatures
from vidchat.model import masked
from vidchat.model.chunks import LatentShape, TokenShapes
from vidchat.model.flow import FlowShape
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.responder import Responder
from vidchat.model.transformer import Shape
from vidchat.profiling.cost import Workload, random_batch

TEXT, TEXT_WIDTH, MASKED = 256, 2560, 0.867


def matrix_product(size: int = 1536) -> float:
    """Returns the GFLOP/s of a square fp32 matrix product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = min(seconds(lambda: a @ b) for _ in range(10))
    return 2 * size**3 / best / 1e9


def seconds(function: Callable[[], Any]) -> float:
    """Returns the processor seconds of a call; with one thread on a quiet machine they equal wall time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def optimise(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Returns a function that runs a training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class Ours:
    """The responder without audio, with its text as features."""

    def __init__(
        self, options: argparse.Namespace, latents: Tensor, text: Tensor, noises: int = 4, set_causal: bool = False
    ) -> None:
        width, (backbone, refiner) = options.width, options.layers

        def shape(layers: int) -> Shape:
            heads = width // 64
            mlp = round(width * 8 / 3)  # SwiGLU's three matrices have as many weights as NOVA's two
            return Shape(width=width, layers=layers, heads=heads, kv_heads=heads, head_dim=64, mlp_width=mlp)

        self.model = Responder(
            TokenShapes(LatentShape(latents.shape[2], 4)), shape(backbone),
            FlowShape(options.head, 3, noises=noises), shape(refiner),
            conditions=Conditioning({"features": ThinkerFeatures(TEXT_WIDTH)}), patch=2, ratio=2, set_causal=set_causal,
        )  # fmt: skip
        features = torch.cat([text, text[:, :2]], dim=1)  # NOVA adds two tokens, for motion
        work = Workload(latents.shape[3:], latents.shape[1] - 1, branch="single", batch=len(latents))
        self.batch = replace(random_batch(self.model, work), latents=latents)
        mask = torch.ones(features.shape[:2], dtype=torch.bool)
        self.batch.conditions["features"] = ConditionValues(features, mask)

    def training_step(self) -> Callable[[], None]:
        self.model.train()
        masked.draw_masked_count = lambda tokens: math.ceil(tokens * MASKED)
        return optimise(self.model, lambda: self.model.loss(self.batch)["loss"])

    def frame(self, sets: int, steps: int) -> Callable[[], None]:
        self.model.eval()
        # Midpoint steps take two evaluations, so NOVA's 25 Euler steps are compared with 26 evaluations.
        sampling = ChunkSampling(sets=sets, flow_steps=steps + steps % 2)
        batch = self.batch.first(1)
        with torch.no_grad():
            start = self.model.start(batch, 8)

        def generate() -> None:
            with torch.no_grad():  # the same step is read again and again
                state = self.model.read_step(start, Chunk(batch.latents[:, 1]))
                self.model.generate_chunk(state, sampling)

        return generate


class Nova:
    """NOVA, from its own repository."""

    def __init__(self, options: argparse.Namespace, latents: Tensor, text: Tensor) -> None:
        sys.path.insert(0, os.environ["NOVA_REPO"])
        from diffnext.models.transformers import transformer_nova as peer
        from diffnext.schedulers.scheduling_cfm import FlowMatchEulerDiscreteScheduler

        width, (backbone, spatial) = options.width, options.layers
        sizes = {"embed_dim": width, "num_heads": width // 64}
        peer.VIDEO_ENCODERS.register("bench", peer.video_encoder, depth=backbone, **sizes)
        peer.IMAGE_ENCODERS.register("bench", peer.image_encoder, depth=spatial, **sizes)
        peer.IMAGE_DECODERS.register("bench", peer.image_decoder, depth=3, embed_dim=options.head)
        rows, cols = latents.shape[-2:]
        self.model = peer.NOVATransformer3DModel(
            image_dim=latents.shape[2], image_size=(rows * 8, cols * 8), image_stride=8,
            text_token_dim=TEXT_WIDTH, text_token_len=TEXT,
            image_base_size=[rows // 2, cols // 2], video_base_size=[options.frames, rows // 4, cols // 4],
            arch=("bench", "bench", "bench"),
        )  # fmt: skip
        self.model.noise_scheduler = FlowMatchEulerDiscreteScheduler()
        self.model.sample_scheduler = FlowMatchEulerDiscreteScheduler()
        self.model.mask_embed.mask_ratios = [MASKED, MASKED + 1e-4, 0.25]
        self.latents, self.text = latents[:, 1:].transpose(1, 2).contiguous(), list(text)

    def inputs(self, count: int) -> dict[str, Any]:
        return {"prompt": self.text[:count], "motion_flow": [5.0] * count, "fps": [12.0] * count}

    def training_step(self) -> Callable[[], None]:
        self.model.train()
        inputs = self.inputs(len(self.text))
        return optimise(self.model, lambda: sum(self.model({**inputs, "x": self.latents.clone()}).values()))  # type: ignore[arg-type]

    def frame(self, sets: int, steps: int) -> Callable[[], None]:
        """Returns a function that generates frame 1 from the cached keys and values of text and frame 0."""
        model = self.model.eval()
        model.sample_scheduler.set_timesteps(steps)
        tokens = self.latents.shape[-2] * self.latents.shape[-1] // 4
        masked = [round(tokens * math.cos(math.pi / 2 * i / sets)) for i in range(sets)] + [0]
        inputs = {**self.inputs(1), "num_preds": [a - b for a, b in itertools.pairwise(masked)]}
        states: dict[str, Any] = {"x": self.latents[:1, :, 0].clone(), "noise": self.latents[:1, :, 0].clone(), "t": 1}
        encoder, positions = model.video_encoder, model.video_pos_embed
        time_embed = positions.get_time_embed(self.latents.shape[2])
        with torch.inference_mode():
            encoder.enable_kvcache(True)
            for block in encoder.blocks:
                block.attn.attn_mask = None  # else the mask of training remains
            model.preprocess(inputs)
            first = model.mask_embed.bos_token.expand(1, tokens // 4, -1) + time_embed[0]
            encoder(positions(first.clone()), inputs["c"])
        caches = [block.attn.cache_kv for block in encoder.blocks]

        def generate() -> None:
            with torch.inference_mode():
                for block, cache in zip(encoder.blocks, caches, strict=True):
                    block.attn.cache_kv = list(cache)
                model.mask_embed.pred_ids, frame = None, self.latents[:1, :, 0].clone()
                states["x"] = frame
                states["c"] = encoder(positions(encoder.patch_embed(frame) + time_embed[1]), None)
                model.generate_frame(states, inputs)

        return generate


def compare(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, dict[str, float]]:
    """Returns the median seconds by name, and the ratio of the last function's to them; functions alternate."""
    for function in functions.values():
        function()
    rounds = [{name: seconds(function) for name, function in functions.items()} for _ in range(repeats)]
    peer, result = list(functions)[-1], {}
    for name in functions:
        ratios = sorted(times[peer] / times[name] for times in rounds)
        result[name] = {
            "seconds": statistics.median(times[name] for times in rounds),
            "ratio": statistics.median(ratios), "ratio_least": ratios[0], "ratio_most": ratios[-1],
        }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=192, help="for backbone and spatial transformer")
    parser.add_argument("--layers", type=int, nargs=2, default=[4, 8], help="for backbone and spatial transformer")
    parser.add_argument("--head", type=int, default=240, help="width of the head, which has 3 blocks")
    parser.add_argument("--latents", type=int, nargs=2, default=[60, 96], help="rows and columns; 60 96 is 480x768")
    parser.add_argument("--frames", type=int, default=3, help="latent frames of a clip")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--sets", type=int, default=64, help="64 is NOVA's default")
    parser.add_argument("--steps", type=int, default=25, help="steps of the head for each set; 25 is NOVA's default")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if "NOVA_REPO" not in os.environ:
        sys.exit("error: set NOVA_REPO to a clone of https://github.com/baaivision/NOVA")
    torch.manual_seed(0)
    latents = torch.randn(options.batch, options.frames + 1, 4, *options.latents)
    text = torch.randn(options.batch, TEXT, TEXT_WIDTH)
    torch.set_num_threads(1)  # processor seconds measure speed with one thread only
    models: dict[str, Ours | Nova] = {
        "ours, as NOVA": Ours(options, latents, text, noises=1),
        "ours": Ours(options, latents, text),
        "ours, set-causal": Ours(options, latents, text, set_causal=True),
        "NOVA": Nova(options, latents, text),
    }
    sizes = {name: sum(p.numel() for p in peer.model.parameters()) / 1e6 for name, peer in models.items()}
    floor = matrix_product()
    result: dict[str, Any] = {"options": {k: v for k, v in vars(options).items() if k != "output"}}
    result |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    result |= {"parameters_m": sizes, "matrix_product_gflops": floor}
    print(", ".join(f"{name} {size:.1f} M" for name, size in sizes.items()) + f"; a matrix product {floor:.0f} GFLOP/s")
    steps: dict[str, Callable[[Ours | Nova], Callable[[], None]]] = {
        "training_step": lambda model: model.training_step(),
        "generated_frame": lambda model: model.frame(options.sets, options.steps),
    }
    for step, prepare in steps.items():
        print(f"{step:24}{'seconds':>10}  NOVA / this", flush=True)
        rows = result[step] = compare({name: prepare(model) for name, model in models.items()}, options.repeats)
        for name, row in rows.items():
            spread = f"({row['ratio_least']:.2f} .. {row['ratio_most']:.2f})"
            print(f"  {name:22}{row['seconds']:10.3f}{row['ratio']:8.2f} {spread}", flush=True)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
