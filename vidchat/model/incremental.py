"""Runs a stack one token at a time, in fewer and larger operations than its blocks.

With one token per pass every operation is small: a GPU spends the pass launching kernels, and a CPU half of it between
operations. Here the projections of one input are one product, and queries and keys are normalised and rotated as one
tensor. Nothing is read back from the device, and no shape depends on data, so all passes can be one CUDA graph.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vidchat.model.attention import attend
from vidchat.model.cache import Cache
from vidchat.model.transformer import Block, Transformer


class IncrementalTransformer:
    """Computes what `Transformer.run` computes token by token with a cache, up to rounding. Not for training.

    The weights of joined projections are copied at construction; later changes have no effect.

    Args:
        transformer: The stack.
        angles: Rotary angles of all N tokens, two (1, 1, N, head_dim) tensors.
    """

    def __init__(self, transformer: Transformer, angles: tuple[Tensor, Tensor]) -> None:
        self._norm = transformer.norm
        self._blocks = [_IncrementalBlock(cast(Block, block), angles) for block in transformer.layers]
        self._cache = Cache(len(self._blocks), capacity=angles[0].shape[2])

    def step(self, x: Tensor) -> Tensor:
        """Returns the outputs (B, D) for the next token of each sample, (B, D)."""
        x = x.to(self._norm.weight.dtype)  # as in `Transformer.run`
        for layer, block in enumerate(self._blocks):
            x = block.step(x, self._cache, layer)
        self._cache.advance(1)
        return self._norm(x)


class _IncrementalBlock:
    """A block with joined weights."""

    def __init__(self, block: Block, angles: tuple[Tensor, Tensor]) -> None:
        attention, mlp = block.self_attn, block.mlp
        self._attention_norm, self._mlp_norm = block.input_layernorm, block.post_attention_layernorm
        self._query_key_value = _join(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self._output = _join(attention.o_proj.weight)
        self._gate_up = _join(mlp.gate_proj.weight, mlp.up_proj.weight)
        self._down = _join(mlp.down_proj.weight)
        self._heads, self._kv_heads, self._head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self._backend, self._eps = attention.backend, attention.q_norm.eps
        # The weights of the norms of queries and keys are folded into the angles.
        weight = torch.cat([
            attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)
        ])  # fmt: skip
        cos, sin = (x[0, 0].unsqueeze(1) for x in angles)
        self._cos = (cos * weight).unbind()  # (heads + kv_heads, head_dim) for each token
        self._sin = (sin * weight.roll(self._head_dim // 2, -1)).unbind()

    def step(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """Returns the outputs (B, D) for the next token (B, D), whose keys and values are stored."""
        rotated, values = self._project(self._attention_norm(x), cache.written)
        queries, keys = rotated.split([self._heads, self._kv_heads], dim=1)
        stored = cache.write(layer, keys.unsqueeze(2), values.unsqueeze(2))
        attended = attend(queries.unsqueeze(2), *stored, None, backend=self._backend)
        x = x + F.linear(attended.flatten(1), self._output)
        gate, up = F.linear(self._mlp_norm(x).to(self._gate_up.dtype), self._gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self._down)

    def _project(self, x: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, heads + kv_heads, head_dim) of a token, rotated, and values (B, kv_heads, head_dim)."""
        weight = self._query_key_value
        projected = F.linear(x.to(weight.dtype), weight).unflatten(1, (-1, self._head_dim))
        both, values = projected.split([self._heads + self._kv_heads, self._kv_heads], dim=1)
        both = F.rms_norm(both.to(x.dtype), (self._head_dim,), eps=self._eps)
        swapped = both.roll(self._head_dim // 2, -1)
        return torch.addcmul(both * self._cos[token], swapped, self._sin[token]).to(values.dtype), values


def _join(*weights: Tensor) -> Tensor:
    """Joins weights into those of one product; under autocast they are cast once, not at every step."""
    weight, device = torch.cat(weights) if len(weights) > 1 else weights[0], weights[0].device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return weight.to(torch.get_autocast_dtype(device)) if autocast else weight
