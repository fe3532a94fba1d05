"""Cost of a responder: its counted operations and bytes, and the least time that these take on a GPU."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.dialogue import Branch
from vidchat.layout import Place, TurnSpan, lay_out
from vidchat.model.cache import KeyValueCache
from vidchat.model.generation_state import Chunk, GenerationState
from vidchat.model.masked import draw_masked_count
from vidchat.model.responder import Responder
from vidchat.model.set_causal import SetCausalTransformer, draw_set_count
from vidchat.model.transformer import Attention
from vidchat.profiling.count import Work, count

BRANCHES: tuple[Branch, ...] = ("single", "dialogue", "listening")
MASKED = 0.867  # mean share of masked tokens in training, see `masked.draw_masked_count`
SETS = 16  # median number of sets in training, see `set_causal.draw_set_count`


@dataclass(frozen=True)
class Device:
    """Peak speeds of a GPU from its data sheet.

    Attributes:
        flops: Peak rate of dense bf16 matrix products, in operations per second.
        bandwidth: Memory bandwidth, in bytes per second.
    """

    flops: float
    bandwidth: float

    def seconds(self, flops: float, moved: float) -> float:
        """Returns the least time for operations and memory traffic: the longer of the two."""
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
    """Sizes of a training step and of a generated chunk.

    Attributes:
        grid: Rows and columns of a latent.
        said: Chunks that the responder says in a training sample.
        heard: Chunks of the initiator in it; 0 for a model that hears nothing.
        branch: Whether nothing is heard (single), or before the responder speaks (dialogue), or meanwhile (listening).
        text: Text tokens.
        batch: Samples in a training step; generation has one dialogue.
        window: Earlier steps that a step sees in generation, besides the conditions and the reference.
        sets: Sets in which a chunk's visual tokens are generated.
        flow_steps: Evaluations of the flow head for each set.
        guided: Whether generation runs an unconditional half too (classifier-free guidance).
    """

    grid: tuple[int, int]
    said: int = 25
    heard: int = 25
    branch: Branch = "dialogue"
    text: int = 0
    batch: int = 1
    window: int = 64
    sets: int = 16
    flow_steps: int = 8
    guided: bool = False

    def columns(self) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
        """Returns the said and the heard columns of a training sample."""
        turns = [TurnSpan("responder", self.said, start=0)]
        if self.branch != "single" and self.heard:
            start = 0 if self.branch == "listening" else -self.heard
            turns.append(TurnSpan("initiator", self.heard, start))
        layout = lay_out(turns)
        return layout.said, layout.heard


@dataclass(frozen=True)
class Sizes:
    """Tokens of one chunk.

    Attributes:
        coarse: Visual tokens in the backbone.
        heard: Visual tokens of a heard chunk in the backbone.
        fine: Visual tokens in the spatial transformer.
        codec_frames: Codec frames.
        codebooks: Codebooks.
    """

    coarse: int
    heard: int
    fine: int
    codec_frames: int
    codebooks: int

    @classmethod
    def of(cls, model: Responder, work: Workload) -> Sizes:
        """Returns the sizes of a model's chunks."""
        rows, cols = (side // (model.patch * model.ratio) for side in work.grid)
        codebooks = model.code_shape.codebooks if model.code_shape else 0
        heard = math.ceil(rows / model.heard_ratio) * math.ceil(cols / model.heard_ratio)
        return cls(rows * cols, heard, rows * cols * model.ratio**2, model.codec_frames, codebooks)

    @property
    def chunk(self) -> int:
        """Tokens that a said chunk puts into the backbone."""
        return self.coarse + self.codec_frames

    def sample(self, work: Workload) -> int:
        """Returns the number of tokens that the backbone reads of a training sample."""
        said, heard = work.columns()
        return work.text + len(said) * self.chunk + len(heard) * (self.heard + self.codec_frames)


def parameters(model: Responder) -> dict[str, int]:
    """Returns the number of trainable parameters of each submodule."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def training_work(model: Responder, work: Workload) -> dict[str, Work]:
    """Returns the work of one training step, forward and backward, by submodule.

    The backward pass is counted as a whole and divided among the submodules in proportion to their forward passes.

    Args:
        model: Responder on any device.
        work: Sizes of the training step.
    """
    model, batch = _on_meta(model).train(), random_batch(model, work, "meta")
    losses: list[Tensor] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_typical_seed(model, Sizes.of(model, work).fine))
        forward = count(model, lambda: losses.append(model.loss(batch)["loss"]))
    backward = count(model, losses[0].backward)
    both = 1 + sum(part.flops for part in backward.values()) / sum(part.flops for part in forward.values())
    return {name: part * both for name, part in forward.items()}


def generation_work(model: Responder, work: Workload) -> dict[str, dict[str, Work]]:
    """Returns the work of one generated chunk by submodule: a step is read after a full window, the next chunk drawn.

    Args:
        model: Responder on any device.
        work: Window, sets and flow steps.

    Returns:
        The work by what the step reads: `said`, and `heard_and_said` for a model that hears.
    """
    model = _on_meta(model).eval()
    scale = 2.0 if work.guided else 1.0
    sampling = model.sampling.changed({"sets": work.sets, "flow_steps": work.flow_steps, "guidance": scale})
    state = _full_state(model, work)
    codes = _codes(model, 1, 1)
    said, states = Chunk(state.reference, None if codes is None else codes[:, 0]), [state]

    def read(heard: Chunk | None) -> dict[str, Work]:
        return count(model, lambda: states.append(model.read_step(state, said, heard)))

    with torch.no_grad():
        reads = {"said": read(None)} | ({"heard_and_said": read(said)} if model.conditions.hears else {})
        drawn = count(model, lambda: model.generate_chunk(states[-1], sampling))
    return {
        kind: {name: parts.get(name, Work()) + drawn.get(name, Work()) for name in parts | drawn}
        for kind, parts in reads.items()
    }


def _on_meta(model: Responder) -> Responder:
    """Returns a copy without values, whose attention computes only the spans that the block-causal mask leaves."""
    model = copy.deepcopy(model).to("meta")
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = "spans"
    return model


def _typical_seed(model: Responder, tokens: int) -> int:
    """Returns a seed with which training draws about the mean number of masked tokens, or the median number of sets."""
    causal = isinstance(model.spatial, SetCausalTransformer)

    def distance(seed: int) -> float:
        torch.manual_seed(seed)
        return abs(draw_set_count(tokens) - SETS) if causal else abs(draw_masked_count(tokens) - MASKED * tokens)

    return min(range(200), key=distance)


def random_batch(model: Responder, work: Workload, device: torch.device | str = "cpu") -> ChunkBatch:
    """Returns the samples of a training step, of random tokens.

    On the meta device only the steps have values, on which the mask and the order of the tokens depend.
    """
    said, heard = work.columns()

    def ones(columns: int) -> Tensor:
        return torch.ones(work.batch, columns, dtype=torch.long, device=device)

    def steps(places: tuple[Place, ...]) -> Tensor:
        on = "cpu" if torch.device(device).type == "meta" else device
        return torch.tensor([place.step for place in places], device=on).expand(work.batch, -1)

    def latents(columns: int) -> Tensor:
        return torch.randn(work.batch, columns, model.latent.channels, *work.grid, device=device)

    stills = torch.tensor([place.chunk == 0 for place in said], device=device).expand(work.batch, -1)
    batch = ChunkBatch(
        latents(len(said)), steps(said), stills, ones(len(said)).bool(), _codes(model, work.batch, len(said), device),
        ends=0 * ones(len(said)),
    )  # fmt: skip
    if heard:
        batch.heard_latents, batch.heard_steps = latents(len(heard)), steps(heard)
        batch.heard_codes = _codes(model, work.batch, len(heard), device)
        batch.heard_video = batch.heard_audio = ones(len(heard)).bool()
    if work.text:
        batch.conditions["text"] = ConditionValues(0 * ones(work.text), ones(work.text).bool())
    return batch


def _codes(model: Responder, size: int, columns: int, device: torch.device | str = "meta") -> Tensor | None:
    """Returns random codes (size, columns, F, K); `None` for a model without audio."""
    shape = model.code_shape
    if shape is None:
        return None
    return torch.randint(shape.vocabulary, (size, columns, shape.codec_frames, shape.codebooks), device=device)


def _full_state(model: Responder, work: Workload) -> GenerationState:
    """Returns the state of generation after as many steps as the window has, without values."""
    sizes, shape, copies = Sizes.of(model, work), model.backbone.shape, 2 if work.guided else 1
    pinned = work.text + sizes.chunk
    visible = torch.zeros(copies, pinned, dtype=torch.bool, device="meta")
    heard = sizes.heard + sizes.codec_frames if model.conditions.hears else 0
    cache = KeyValueCache(shape.layers, visible, heard, sizes.chunk, max(1, work.window), undo=0)
    keys = torch.empty(copies, shape.kv_heads, pinned, shape.head_dim, device="meta")
    for layer in range(shape.layers):
        cache.write(layer, keys, keys)
    side = model.patch * model.ratio
    last = torch.empty(1, model.latent.channels, *work.grid, device="meta")
    grid = work.grid[0] // side, work.grid[1] // side
    origin = torch.empty(copies, dtype=torch.float64, device="meta")
    return GenerationState(cache, origin, cache.window, grid, reference=last, hidden=None, last=last)
