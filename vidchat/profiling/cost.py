"""What a responder costs: operations and bytes by formula, and the least time they take on a device.

Operations are those of matrix products and attention, 2 for each multiplication with its addition, attention counted
over the pairs that the mask leaves. A training step is three forward passes' worth of them, and what is recomputed does
not count. `memory` has the formulas of what training keeps. The tests hold all of them to what a small model does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vidchat.model.flow import LEVELS, TokenDenoiser, steps_at_once
from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer
from vidchat.model.spatial import SpatialTransformer, set_sizes
from vidchat.model.transformer import Shape

MASKED = 0.867  # the mean share of masked tokens in training, see `masked.draw_masked_count`
SETS = 16  # the median number of sets in training, see `set_causal.draw_set_count`


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it.

    Attributes:
        flops: Peak of dense bf16 matrix products, operations per second.
        bandwidth: Of its memory, bytes per second.
        memory: Bytes.
    """

    flops: float
    bandwidth: float
    memory: float


# NVIDIA's data sheets: H100 SXM, H200 SXM, A100 80 GB SXM, L40S; bf16 without sparsity.
DEVICES = {
    "H100": Device(989.4e12, 3.35e12, 80e9),
    "H200": Device(989.4e12, 4.8e12, 141e9),
    "A100": Device(312e12, 2.039e12, 80e9),
    "L40S": Device(362e12, 0.864e12, 48e9),
}


@dataclass(frozen=True)
class Workload:
    """What is trained on and generated.

    Attributes:
        grid: Rows and columns of a latent.
        chunks: T of a training clip.
        turns: Chunks of the initiator's clip and of earlier turns.
        text: Text tokens.
        batch: Clips in a training step; generation is of one.
        window: Of generation, in chunks.
        sets: N.
        flow_steps: For each set.
        guided: Whether generation carries an unconditional half.
    """

    grid: tuple[int, int]
    chunks: int = 25
    turns: int = 25
    text: int = 0
    batch: int = 1
    window: int = 64
    sets: int = 16
    flow_steps: int = 8
    guided: bool = False


@dataclass(frozen=True)
class Work:
    """Operations, and bytes moved to and from the device's memory."""

    flops: float = 0.0
    bytes: float = 0.0

    def seconds(self, device: Device) -> float:
        """The least time it takes: whatever is slower, computing or moving."""
        return max(self.flops / device.flops, self.bytes / device.bandwidth)


@dataclass(frozen=True)
class Sizes:
    """Tokens of one chunk.

    Attributes:
        coarse: Visual tokens in the backbone.
        fine: S, visual tokens in the spatial transformer.
        frames: F.
        books: K.
    """

    coarse: int
    fine: int
    frames: int
    books: int

    @classmethod
    def of(cls, model: Responder, work: Workload) -> Sizes:
        rows, cols = (side // (model.patch * model.ratio) for side in work.grid)
        books = model.code_shape.codebooks if model.code_shape else 0
        return cls(rows * cols, rows * cols * model.ratio**2, model.frames, books)

    @property
    def chunk(self) -> int:
        """Tokens that a chunk puts into the backbone."""
        return self.coarse + self.frames


def parameters(model: Responder) -> dict[str, int]:
    """Trainable parameters by part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def training_flops(model: Responder, work: Workload) -> dict[str, float]:
    """Operations of one training step by part, forward and backward."""
    return {name: 3 * work.batch * flops for name, flops in _forward_flops(model, work).items()}


def _forward_flops(model: Responder, work: Workload) -> dict[str, float]:
    """Of one clip."""
    sizes, clip = Sizes.of(model, work), work.chunks
    condition = [1] * work.text + [sizes.chunk] * work.turns
    blocks = condition + [sizes.chunk] * clip
    pairs, tokens = causal_pairs(blocks), sum(blocks)
    wanted = causal_pairs(blocks) - causal_pairs(condition)
    shape = model.backbone.shape
    flops = {
        "embed": 2.0 * model.embed.visual.weight.numel() * sizes.coarse * (clip + work.turns),
        "backbone": stack_flops(shape, tokens, pairs, clip * sizes.chunk, wanted),
    }
    if model.depth is not None:
        steps = sizes.frames * sizes.books
        stack = stack_flops(model.depth.transformer.shape, steps, causal_pairs([1] * steps))
        heads = 2 * model.depth.heads[0].numel() * steps
        flops["depth"] = clip * (stack + heads + 2 * model.depth.condition.weight.numel() * sizes.frames)
    kept = min(clip, (model.objective.spatial_chunks or clip * work.batch) / work.batch)
    predicted = predicted_tokens(model, sizes)
    if model.spatial is None:
        assert model.direct is not None
        flops["direct"] = kept * linear_flops(model.direct) * sizes.coarse
    else:
        filling = (
            _set_causal_flops(model.spatial, sizes, set_sizes(sizes.fine, SETS))
            if isinstance(model.spatial, SetCausalTransformer)
            else _masked_flops(model.spatial, sizes, sizes.fine - predicted, predicted)
        )
        flops["spatial"] = kept * (_context_flops(model.spatial, sizes) + filling)
    # Conditions are projected once for all draws, and times once for all tokens; modulations once for each time.
    denoiser, head, drawn = model.flow.denoiser, model.flow.shape, kept * predicted
    once, time = linear_flops(denoiser.condition), linear_flops(denoiser.time)
    modulation = modulation_flops(denoiser)
    each = linear_flops(denoiser) - once - time - modulation
    times = min(drawn * head.times, LEVELS / work.batch)
    flops["flow"] = drawn * (once + head.times * modulation + head.draws * each) + times * time
    return flops


def generation_work(model: Responder, work: Workload, width: int = 2) -> dict[str, Work]:
    """One generated chunk by part, the window full: reading the last chunk, then writing.

    Args:
        model: Its weights are read once in every pass.
        work: The workload.
        width: Bytes per value, 2 for bf16.
    """
    sizes, copies = Sizes.of(model, work), 2 if work.guided else 1
    pinned = work.text + sizes.chunk * (work.turns + 1)
    seen = pinned + sizes.chunk * (work.window + 1)
    shape = model.backbone.shape
    cache = _cached_values(shape) * seen
    count = parameters(model)
    result = {
        "backbone": Work(
            copies * stack_flops(shape, sizes.chunk, sizes.chunk * seen), width * (count["backbone"] + copies * cache)
        )
    }
    if model.depth is not None:
        steps = sizes.frames * sizes.books
        stack = stack_flops(model.depth.transformer.shape, steps, causal_pairs([1] * steps))
        heads = 2 * model.depth.heads[0].numel() * steps
        condition = 2 * model.depth.condition.weight.numel() * sizes.frames
        weights = sum(p.numel() for p in model.depth.transformer.parameters()) + model.depth.heads[0].numel()
        result["depth"] = Work(copies * (stack + heads + condition), width * steps * weights)
    if model.spatial is None:
        sets = [sizes.fine]
        assert model.direct is not None
        result["direct"] = Work(copies * linear_flops(model.direct) * sizes.coarse, width * count["direct"])
    else:
        sets = set_sizes(sizes.fine, work.sets)
        filled = [0, *itertools.accumulate(sets[:-1])]
        flops, moved = _context_flops(model.spatial, sizes), count["spatial"] * len(sets)
        if isinstance(model.spatial, SetCausalTransformer):
            flops += _set_causal_flops(model.spatial, sizes, sets)
            kept = sum(_cached_values(half.shape) for half in (model.spatial.encoder, model.spatial.decoder))
            moved += copies * kept * sum(sizes.chunk + before for before in filled)
        else:
            flops += sum(_masked_flops(model.spatial, sizes, *passed) for passed in zip(filled, sets, strict=True))
        result["spatial"] = Work(copies * flops, width * moved)
    # The condition is projected once for each set; the time, the same for all tokens, once for each step.
    denoiser = model.flow.denoiser
    once, time = linear_flops(denoiser.condition), linear_flops(denoiser.time)
    each = linear_flops(denoiser) - once - time
    steps = work.flow_steps * len(sets)
    flops = sizes.fine * (once + work.flow_steps * each) * copies + steps * time
    # Modulations of several steps are one product, which reads its weights once.
    modulations = modulation_flops(denoiser) / 2
    products = sum(math.ceil(work.flow_steps / steps_at_once(copies * size)) for size in sets)
    result["flow"] = Work(flops, width * ((count["flow"] - modulations) * steps + modulations * products))
    return result


def predicted_tokens(model: Responder, sizes: Sizes) -> int:
    """Visual tokens of a chunk that a training step predicts."""
    every = model.spatial is None or isinstance(model.spatial, SetCausalTransformer)
    return sizes.fine if every else round(sizes.fine * MASKED)


def _context_flops(spatial: SpatialTransformer, sizes: Sizes) -> float:
    """What the spatial transformer is told about a chunk, once."""
    context = linear_flops(spatial.context) * sizes.chunk + linear_flops(spatial.places) * sizes.coarse
    return context + linear_flops(spatial.seen) * sizes.fine


def _masked_flops(spatial: SpatialTransformer, sizes: Sizes, visible: int, wanted: int) -> float:
    """One pass: a training step's, or that of one set."""
    known, everything = sizes.chunk + visible, sizes.chunk + sizes.fine
    encoder = stack_flops(spatial.encoder.shape, known, known**2)
    decoder = stack_flops(spatial.decoder.shape, everything, everything**2, wanted, wanted * everything)
    return encoder + decoder + linear_flops(spatial.token) * visible


def _set_causal_flops(spatial: SpatialTransformer, sizes: Sizes, sets: list[int]) -> float:
    """All sets, be it in a training step's one pass or one by one: nothing is computed twice."""
    read = [sizes.chunk, *sets[:-1]]
    asked = sum(size * seen for size, seen in zip(sets, itertools.accumulate(read), strict=True))
    encoder = stack_flops(spatial.encoder.shape, sum(read), causal_pairs(read))
    decoder = stack_flops(spatial.decoder.shape, sizes.fine, asked, readable=sum(read))
    return encoder + decoder + linear_flops(spatial.token) * sum(sets[:-1])


def _cached_values(shape: Shape) -> int:
    """Keys and values of one token, in all layers."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def stack_flops(
    shape: Shape,
    tokens: int,
    pairs: int,
    wanted: int | None = None,
    wanted_pairs: int | None = None,
    readable: int | None = None,
) -> float:
    """Forward operations of a stack of blocks.

    Args:
        shape: Its sizes.
        tokens: That go in.
        pairs: Of a query and a key that it sees.
        wanted: Tokens that come out of the last block; `None` is all.
        wanted_pairs: Pairs of these.
        readable: Tokens that are keys; `None` is all.
    """
    readable = tokens if readable is None else readable
    wanted, wanted_pairs = tokens if wanted is None else wanted, pairs if wanted_pairs is None else wanted_pairs
    of_keys = 2 * shape.width * shape.kv_heads * shape.head_dim
    others = 2 * shape.width * shape.heads * shape.head_dim + 3 * shape.width * shape.mlp_width
    full = shape.layers - 1
    products = shape.layers * readable * of_keys + (full * tokens + wanted) * others
    return 2 * products + 4 * shape.heads * shape.head_dim * (full * pairs + wanted_pairs)


def causal_pairs(blocks: Iterable[int]) -> int:
    """Pairs of tokens of which the first sees the second, for blocks of these sizes one after the other."""
    end = pairs = 0
    for size in blocks:
        end += size
        pairs += size * end
    return pairs


def modulation_flops(denoiser: TokenDenoiser) -> float:
    """Those of the layers that know the time and the condition, but not the token."""
    return sum(linear_flops(part) for name, part in denoiser.named_modules() if name.endswith("modulation"))


def linear_flops(module: nn.Module) -> float:
    """Forward operations of a module's linear layers for one token."""
    return sum(2.0 * layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
