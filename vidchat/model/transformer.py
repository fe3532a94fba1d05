"""The transformer all stacks are made of: Qwen3's block (RMSNorm, grouped-query attention with QK-norm, SwiGLU).

Parameters carry the names of `transformers`' Qwen3, so its weights load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vidchat.model.attention import Backend, attend
from vidchat.model.cache import Cache
from vidchat.model.mask import BlockCausal
from vidchat.model.norm import RMSNorm
from vidchat.model.rotary import rotary_angles, rotate
from vidchat.registry import register

ALL = slice(None)
Memory = tuple[Tensor, tuple[Tensor, Tensor]]  # tokens (B, N, D) that are read by others, with their rotary angles


@register("transformer")
@dataclass(frozen=True)
class Shape:
    """Sizes of a stack of transformer blocks.

    Attributes:
        width: D, values per token.
        layers: Number of blocks.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Values per head, a multiple of 8 so that the three rotary axes share them as meant.
        mlp_width: Hidden values of the SwiGLU.
        theta: Base of the rotary frequencies.
        attention: How attention is computed; `auto` takes the fastest for the device.
        recompute: Keep only the inputs of blocks for the backward pass, and compute the rest again: a third more work
            for a small part of the memory.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    theta: float = 10_000.0
    attention: Backend = "auto"
    recompute: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        if self.head_dim % 8:
            raise ValueError(f"head_dim must be a multiple of 8, got {self.head_dim}")


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = shape.heads, shape.kv_heads, shape.head_dim
        self.backend = shape.attention
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, eps=1e-6)
        self.k_norm = RMSNorm(shape.head_dim, eps=1e-6)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: BlockCausal | Tensor | None,
        causal: bool,
        cache: Cache | None,
        layer: int,
        wanted: slice,
        memory: Memory | None,
    ) -> Tensor:
        own = angles[0][:, :, wanted], angles[1][:, :, wanted]
        queries = self.q_proj(x[:, wanted])
        queries = rotate(self.q_norm(self._split(queries, self.heads).to(self.q_norm.weight.dtype)), own)
        if memory is not None:
            x, angles = memory
        keys = rotate(self.k_norm(self._split(self.k_proj(x), self.kv_heads).to(self.k_norm.weight.dtype)), angles)
        values = self._split(self.v_proj(x), self.kv_heads)
        queries, keys = queries.to(values.dtype), keys.to(values.dtype)
        if cache is not None:
            keys, values = cache.write(layer, keys, values)
        attended = attend(queries, keys, values, mask, causal, self.backend)
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """The gated feed-forward layer (arXiv 2002.05202)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down_proj = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm and added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.width, eps=1e-6)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.width, eps=1e-6)
        self.mlp = SwiGLU(shape)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: BlockCausal | Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        layer: int = 0,
        wanted: slice = ALL,
        memory: Memory | None = None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), angles, mask, causal, cache, layer, wanted, memory)
        x = x[:, wanted] + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A stack of blocks with a final norm.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """Unit-variance projections; those that write into the residual stream shrink with the depth (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = (2 * self.shape.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=depth * parameter.shape[1] ** -0.5)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary angles of tokens at (B, N, 3) positions."""
        return rotary_angles(positions, self.shape.head_dim, self.shape.theta)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: BlockCausal | Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        wanted: slice = ALL,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: (B, N, D).
            positions: (B, N, 3).
            mask: `BlockCausal`, or bool broadcastable to (B, heads, N, keys), True where a query may see a key; `None`
                is everything.
            causal: Token by token, instead of a mask.
            cache: Where keys and values are kept between calls, if they are.
            wanted: Tokens whose outputs are needed: the last block computes keys and values of all, but queries and
                what follows of these alone. With `BlockCausal`, a tail.

        Returns:
            (B, N, D), or (B, wanted, D), normalised.
        """
        return self.run(x, self.angles(positions), mask, causal, cache, wanted)

    def run(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: BlockCausal | Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        wanted: slice = ALL,
        memory: Memory | None = None,
    ) -> Tensor:
        """`forward`, with the rotary angles of the positions already there.

        With a `memory`, the tokens do not read each other: in every layer keys and values are of the memory alone,
        and a `cache` is then of these.
        """
        x = x.to(self.norm.weight.dtype)  # under autocast the residual stream stays in full precision
        tokens = x.shape[1] if memory is None else memory[0].shape[1]
        if cache is not None and mask is None:
            mask = cache.key_mask(tokens)
        last = len(self.layers) - 1
        for index, block in enumerate(self.layers):
            inputs = x, angles, mask, causal, cache, index, wanted if index == last else ALL, memory
            if self.shape.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # no dropout in a block
            else:
                x = block(*inputs)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)
