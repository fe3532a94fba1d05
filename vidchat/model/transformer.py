"""The transformer of all stacks: Qwen3's block (RMSNorm, grouped-query attention with QK-norm, SwiGLU).

Parameters have the names of Qwen3 in `transformers`, so its weights load unchanged.
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
Memory = tuple[Tensor, tuple[Tensor, Tensor]]  # tokens (B, N, D) that queries attend to, with their rotary angles


@register("transformer")
@dataclass(frozen=True)
class Shape:
    """Sizes of a stack of transformer blocks.

    Attributes:
        width: D, values per token.
        layers: Number of blocks.
        heads: Number of query heads.
        kv_heads: Number of key and value heads; divides `heads`.
        head_dim: Values per head, a multiple of 8 so that every rotary axis gets its share of the frequencies.
        mlp_width: Hidden width of the SwiGLU.
        theta: Base of the rotary frequencies.
        attention: Attention backend; `auto` takes the fastest for the device.
        recompute: Whether only the inputs of blocks are stored for the backward pass and the rest is recomputed: a
            third more work for a small part of the memory.
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
        outputs: slice,
        memory: Memory | None,
    ) -> Tensor:
        query_angles = angles[0][:, :, outputs], angles[1][:, :, outputs]
        queries = self.q_proj(x[:, outputs])
        queries = rotate(self.q_norm(self._split(queries, self.heads).to(self.q_norm.weight.dtype)), query_angles)
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
        outputs: slice = ALL,
        memory: Memory | None = None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), angles, mask, causal, cache, layer, outputs, memory)
        x = x[:, outputs] + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A stack of blocks with a final norm.

    Args:
        shape: Sizes of the stack.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, eps=1e-6)
        self._initialise()

    def _initialise(self) -> None:
        """Gives projections unit variance; those into the residual stream shrink with depth (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = (2 * self.shape.layers) ** -0.5 if into_residual else 1.0
                nn.init.normal_(parameter, std=depth * parameter.shape[1] ** -0.5)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rotary angles, (B, 1, N, head_dim) each, of tokens at positions (B, N, 3)."""
        return rotary_angles(positions, self.shape.head_dim, self.shape.theta)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: BlockCausal | Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        outputs: slice = ALL,
    ) -> Tensor:
        """Runs all blocks.

        Args:
            x: (B, N, D).
            positions: (B, N, 3).
            mask: `BlockCausal`, or bool broadcastable to (B, heads, N, keys), True where a query may see a key; `None`
                hides nothing.
            causal: Whether the mask is causal by token; excludes `mask`.
            cache: Cache that keys and values are written to and read from.
            outputs: Tokens whose outputs are needed; in the last block, only these have queries and an MLP. With
                `BlockCausal` they must be the last tokens.

        Returns:
            (B, N, D), or (B, n, D) for the n tokens of `outputs`, normalised.
        """
        return self.run(x, self.angles(positions), mask, causal, cache, outputs)

    def run(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: BlockCausal | Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        outputs: slice = ALL,
        memory: Memory | None = None,
    ) -> Tensor:
        """Runs all blocks, given the rotary angles of the positions, (B, 1, N, head_dim) each; see `forward`.

        With a memory, the tokens x (B, N, D) do not see each other: in every layer, keys and values are those of the
        memory alone, which the cache then holds.
        """
        x = x.to(self.norm.weight.dtype)  # under autocast the residual stream stays in full precision
        tokens = x.shape[1] if memory is None else memory[0].shape[1]
        if cache is not None and mask is None:
            mask = cache.key_mask(tokens)
        last = len(self.layers) - 1
        for index, block in enumerate(self.layers):
            inputs = x, angles, mask, causal, cache, index, outputs if index == last else ALL, memory
            if self.shape.recompute and self.training and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # no dropout in a block
            else:
                x = block(*inputs)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)
