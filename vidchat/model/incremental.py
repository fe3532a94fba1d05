"""A stack that reads one token at a time, in fewer and larger operations than its blocks.

With one token to a pass no operation has much to do: a GPU spends the pass on launches, and a CPU half of it between
operations. Here projections of one input are one product, and queries and keys are normalised and turned as one tensor.
Nothing is read back from the device, and no shape depends on data, so that all passes can be one CUDA graph.
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
    """What `Transformer.run` computes token by token with a cache, to rounding. Not for training.

    Weights are those at the time this is made: those of joined projections are copied.

    Args:
        transformer: The stack.
        angles: Rotary angles (1, 1, N, head_dim) of all N tokens.
    """

    def __init__(self, transformer: Transformer, angles: tuple[Tensor, Tensor]) -> None:
        self._norm = transformer.norm
        self._blocks = [_IncrementalBlock(cast(Block, block), angles) for block in transformer.layers]
        self._cache = Cache(len(self._blocks), capacity=angles[0].shape[2])

    def read(self, x: Tensor) -> Tensor:
        """The outputs (B, D) for the next token of each sample, (B, D)."""
        x = x.to(self._norm.weight.dtype)  # as in `Transformer.run`
        for layer, block in enumerate(self._blocks):
            x = block.read(x, self._cache, layer)
        self._cache.advance(1)
        return self._norm(x)


class _IncrementalBlock:
    """A block with its weights put together."""

    def __init__(self, block: Block, angles: tuple[Tensor, Tensor]) -> None:
        attention, mlp = block.self_attn, block.mlp
        self._attention_norm, self._mlp_norm = block.input_layernorm, block.post_attention_layernorm
        self._query_key_value = _together(attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
        self._output = _together(attention.o_proj.weight)
        self._gate_up = _together(mlp.gate_proj.weight, mlp.up_proj.weight)
        self._down = _together(mlp.down_proj.weight)
        self._heads, self._kv_heads, self._head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self._backend, self._eps = attention.backend, attention.q_norm.eps
        # Queries and keys have norms of their own, whose weights ride on the angles: w n is turned as n is by these.
        weight = torch.cat([
            attention.q_norm.weight.expand(self._heads, -1), attention.k_norm.weight.expand(self._kv_heads, -1)
        ])  # fmt: skip
        cos, sin = (x[0, 0].unsqueeze(1) for x in angles)
        self._cos = (cos * weight).unbind()  # for each token, of (heads + kv_heads, head_dim)
        self._sin = (sin * weight.roll(self._head_dim // 2, -1)).unbind()

    def read(self, x: Tensor, cache: Cache, layer: int) -> Tensor:
        """(B, D) from (B, D), the next token's, whose keys and values are stored."""
        turned, values = self._project(self._attention_norm(x), cache.written)
        queries, keys = turned.split([self._heads, self._kv_heads], dim=1)
        stored = cache.write(layer, keys.unsqueeze(2), values.unsqueeze(2))
        attended = attend(queries.unsqueeze(2), *stored, None, backend=self._backend)
        x = x + F.linear(attended.flatten(1), self._output)
        gate, up = F.linear(self._mlp_norm(x).to(self._gate_up.dtype), self._gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self._down)

    def _project(self, x: Tensor, token: int) -> tuple[Tensor, Tensor]:
        """Queries and keys of a token, normalised and turned, (B, heads + kv_heads, head_dim), and its values."""
        weight = self._query_key_value
        projected = F.linear(x.to(weight.dtype), weight).unflatten(1, (-1, self._head_dim))
        both, values = projected.split([self._heads + self._kv_heads, self._kv_heads], dim=1)
        both = F.rms_norm(both.to(x.dtype), (self._head_dim,), eps=self._eps)
        swapped = both.roll(self._head_dim // 2, -1)
        return torch.addcmul(both * self._cos[token], swapped, self._sin[token]).to(values.dtype), values


def _together(*weights: Tensor) -> Tensor:
    """One product's weights; under autocast cast once, and not at every step."""
    weight, device = torch.cat(weights) if len(weights) > 1 else weights[0], weights[0].device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return weight.to(torch.get_autocast_dtype(device)) if autocast else weight
