"""What a responder costs: its work as it is counted, and the least time that this takes on a GPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.model.cache import KeyValueCache
from vidchat.model.generation_state import GenerationState
from vidchat.model.masked import draw_masked_count
from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer, draw_set_count
from vidchat.model.transformer import Attention
from vidchat.profiling.count import Work, count

MASKED = 0.867  # mean share of masked tokens in training, see `masked.draw_masked_count`
SETS = 16  # median number of sets in training, see `set_causal.draw_set_count`


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it.

    Attributes:
        flops: Peak of dense bf16 matrix products, operations per second.
        bandwidth: Bandwidth of its memory, bytes per second.
    """

    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """Returns the least time that operations and bytes moved take: whichever is slower."""
        return max(flops / self.flops, moved / self.bandwidth)


# NVIDIA's data sheets: H100 SXM, H200 SXM, A100 80 GB SXM, L40S; bf16 without sparsity.
DEVICES = {
    "h100": Device(989.4e12, 3.35e12),
    "h200": Device(989.4e12, 4.8e12),
    "a100": Device(312e12, 2.039e12),
    "l40s": Device(362e12, 0.864e12),
}


@dataclass(frozen=True)
class Workload:
    """What is trained on and generated.

    Attributes:
        grid: Rows and columns of a latent.
        chunks: Chunks of a training clip.
        turns: Chunks of the initiator's clip and of earlier turns.
        text: Text tokens.
        batch: Clips in a training step; generation is of one.
        window: Chunks that a generated chunk sees before itself, besides the condition and the reference.
        sets: Sets in which a chunk's visual tokens are generated.
        flow_steps: Evaluations of the flow head for each set.
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
class Sizes:
    """Tokens of one chunk.

    Attributes:
        coarse: Visual tokens in the backbone.
        fine: Visual tokens in the spatial transformer.
        frames: Codec frames.
        books: Codebooks.
    """

    coarse: int
    fine: int
    codec_frames: int
    books: int

    @classmethod
    def of(cls, model: Responder, work: Workload) -> Sizes:
        """Returns those of a model's chunks."""
        rows, cols = (side // (model.patch * model.ratio) for side in work.grid)
        books = model.code_shape.codebooks if model.code_shape else 0
        return cls(rows * cols, rows * cols * model.ratio**2, model.codec_frames, books)

    @property
    def chunk(self) -> int:
        """Tokens that a chunk puts into the backbone."""
        return self.coarse + self.codec_frames


def parameters(model: Responder) -> dict[str, int]:
    """Returns the number of trainable parameters of each part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def training_work(model: Responder, work: Workload) -> dict[str, Work]:
    """Returns the work of one training step, forward and backward, by part.

    The backward pass is counted as a whole, and shared among the parts as the forward pass is.

    Args:
        model: The responder, on any device.
        work: Its clips.
    """
    model, batch = _on_meta(model).train(), _batch(model, work)
    losses: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_typical_seed(model, Sizes.of(model, work).fine))
        forward = count(model, lambda: losses.append(model.loss(batch)["loss"]))
    backward = count(model, losses[0].backward)
    both = 1 + sum(part.flops for part in backward.values()) / sum(part.flops for part in forward.values())
    return {name: part * both for name, part in forward.items()}


def generation_work(model: Responder, work: Workload) -> dict[str, Work]:
    """Returns the work of one generated chunk by part, the window full: the last chunk is read, then one is written.

    Args:
        model: The responder, on any device.
        work: Its window, sets and steps.
    """
    model = _on_meta(model).eval()
    scale = 2.0 if work.guided else 1.0
    sampling = model.sampling.changed({"sets": work.sets, "flow_steps": work.flow_steps, "guidance": scale})
    reading, codes = _reading(model, work), _codes(model, 1)
    with torch.no_grad():
        return count(model, lambda: model.generate_chunk(model.append_chunk(reading, reading.last, codes), sampling))


def _on_meta(model: Responder) -> Responder:
    """A copy without values. Attention runs in spans there, which compute what the block-causal mask leaves."""
    model = copy.deepcopy(model).to("meta")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = "spans"
    return model


def _typical_seed(model: Responder, tokens: int) -> int:
    """A seed with which a training step draws about the mean number of masked tokens, or the median one of sets."""
    causal = isinstance(model.spatial, SetCausalTransformer)

    def distance(seed: int) -> float:
        torch.manual_seed(seed)
        return abs(draw_set_count(tokens) - SETS) if causal else abs(draw_masked_count(tokens) - MASKED * tokens)

    return min(range(200), key=distance)


def _batch(model: Responder, work: Workload) -> ChunkBatch:
    """A training step's clips without values."""

    def latents(chunks: int) -> Tensor:
        return torch.empty(work.batch, chunks, model.latent.channels, *work.grid, device="meta")

    def codes(chunks: int) -> Tensor | None:
        one = _codes(model, work.batch)
        return None if one is None else one[:, None].expand(-1, chunks, -1, -1)

    def ids(length: int) -> Tensor:
        return torch.zeros(work.batch, length, dtype=torch.long, device="meta")

    batch = ChunkBatch(latents(work.chunks + 1), ids(work.chunks).bool(), codes(work.chunks))
    if work.turns:
        batch.turn_latents, batch.turn_codes = latents(work.turns), codes(work.turns)
        batch.turn_roles, batch.turn_mask = ids(work.turns), ids(work.turns).bool()
    if work.text:
        batch.conditions["text"] = ConditionValues(ids(work.text), ids(work.text).bool())
    return batch


def _codes(model: Responder, batch: int) -> Tensor | None:
    """(batch, F, K) of one chunk without values; `None` for a model without audio."""
    shape = model.code_shape
    return (
        None
        if shape is None
        else torch.zeros(batch, shape.codec_frames, shape.codebooks, dtype=torch.long, device="meta")
    )


def _reading(model: Responder, work: Workload) -> GenerationState:
    """Where generation stands with a full window, without values: all that is seen lies in the cache."""
    sizes, shape, copies = Sizes.of(model, work), model.backbone.shape, 2 if work.guided else 1
    seen = work.text + sizes.chunk * (work.turns + 1 + work.window)
    cache = KeyValueCache(shape.layers, pinned=seen, chunk=sizes.chunk, window=0)
    for layer in range(shape.layers):
        keys = torch.empty(copies, shape.kv_heads, seen, shape.head_dim, device="meta")
        cache.write(layer, keys, keys)
    cache.advance(seen)
    tokens = torch.empty(copies, sizes.chunk, shape.width, device="meta")
    side = model.patch * model.ratio
    last = torch.empty(1, model.latent.channels, *work.grid, device="meta")
    grid = work.grid[0] // side, work.grid[1] // side
    return GenerationState(tokens, cache, tokens[..., :3], 0, grid, reference=last, last=last)
