"""Attention: one function, `attend`, with four backends.

Where each of them is used (docs/reference/performance.md has the figures):

    spans   SDPA over growing prefixes, one call for a few blocks: half the work of a dense mask. CPU.
    flex    FlexAttention (arXiv 2412.05496), compiled, with a block mask that a stack's layers share. CUDA, training.
    dense   SDPA with a full mask. The reference that the others are tested against.
    flash   flash-attn, where there is no mask: the spatial and the depth transformer. CUDA, half precision
            (`precision=bf16`).
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from vidchat.model.mask import BlockCausal, Span

Backend = Literal["auto", "spans", "flex", "dense", "flash"]

HAS_FLASH = importlib.util.find_spec("flash_attn") is not None  # not looked up in `attend`, which is compiled
COMPILATIONS = 64  # limit for FlexAttention: short sequences, batch sizes and dtypes have their own


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: BlockCausal | Tensor | None = None,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Computes scaled dot-product attention with grouped key and value heads.

    Args:
        queries: (B, H, n, head_dim); with `BlockCausal`, the last n of its queries.
        keys: (B, G, N, head_dim), G divides H.
        values: (B, G, N, head_dim).
        mask: `BlockCausal`, or bool broadcastable to (B, H, n, N), True where a query sees a key; `None` hides
            nothing.
        causal: Whether the mask is causal by token; excludes `mask`.
        backend: Backend of the block-causal mask, or `flash` where there is no mask; `auto` takes the fastest.

    Returns:
        (B, H, n, head_dim).

    Raises:
        ValueError: The backend does not support this device or precision.
    """
    if isinstance(mask, BlockCausal):
        return _block_causal(queries, keys, values, mask, backend)
    if mask is None and _uses_flash(queries, backend):
        from flash_attn import flash_attn_func

        transposed = (x.transpose(1, 2) for x in (queries, keys, values))
        return flash_attn_func(*transposed, causal=causal).transpose(1, 2)
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1 and not causal and (mask is None or mask.shape[1:3] == (1, 1)):
        # Queries that share a key head become one longer sequence, so keys and values need not be copied.
        folded = queries.unflatten(1, (-1, groups)).flatten(2, 3)
        attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        return attended.unflatten(2, (groups, -1)).flatten(1, 2)
    keys, values = _repeat(keys, groups), _repeat(values, groups)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)


def _block_causal(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal, backend: Backend) -> Tensor:
    device = queries.device.type
    if backend in ("auto", "flash"):  # flash-attn has no such mask
        # Prefilling runs once per answer and is not worth a compilation; FlexAttention has no heads below 16.
        on_cuda: Backend = "flex" if torch.is_grad_enabled() and queries.shape[-1] >= 16 else "dense"
        backend = "spans" if device == "cpu" else on_cuda if device == "cuda" else "dense"
    groups = queries.shape[1] // keys.shape[1]
    if backend == "flex":
        if device != "cuda" and any(x.requires_grad for x in (queries, keys, values)):
            raise ValueError(f"FlexAttention has no backward on {device}; set attention to spans, dense or auto")
        return _in_tiles(queries, keys, values, mask)
    keys, values = _repeat(keys, groups), _repeat(values, groups)
    if backend == "dense":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask.dense()[:, :, -queries.shape[2] :])
    return _in_spans(queries, keys, values, mask)


@torch.compiler.disable  # inside a compiled block, every number of tokens would recompile the block
def _in_tiles(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal) -> Tensor:
    flex, grouped = _flex(queries.device.type), queries.shape[1] > keys.shape[1]
    attended: Tensor = flex(queries, keys, values, block_mask=mask.flex(queries.shape[2]), enable_gqa=grouped)
    return attended


@torch.compiler.disable  # the number of spans depends on data, and their kernels are compiled already
def _in_spans(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal) -> Tensor:
    spans = mask.last_spans(queries.shape[2])
    if queries.device.type == "cpu":  # in fp32: the backward kernel for bf16 takes three times as long
        return _Spans.apply(queries.float(), keys.float(), values.float(), spans).to(queries.dtype)
    parts = [
        F.scaled_dot_product_attention(
            queries[:, :, start:end], keys[:, :, :seen], values[:, :, :seen], attn_mask=_cast(bias, queries)
        )
        for start, end, seen, bias in spans
    ]
    return torch.cat(parts, dim=2)


class _Spans(torch.autograd.Function):
    """Computes attention span by span with the kernels that SDPA uses on a CPU.

    Autograd through slices would fill and add a full-size gradient for every prefix; here each span adds to its part.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, spans: list[Span]) -> Tensor:
        attended, sums = torch.empty_like(queries), []
        for start, end, seen, bias in spans:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, start:end],
                keys[:, :, :seen],
                values[:, :, :seen],
                0.0,
                False,
                attn_mask=_cast(bias, keys),
            )
            attended[:, :, start:end] = part
            sums.append(log_sum)
        ctx.spans = spans
        ctx.save_for_backward(queries, keys, values, attended, *sums)
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, values, attended, *sums = ctx.saved_tensors
        to_queries, to_keys, to_values = torch.empty_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
        for (start, end, seen, bias), log_sum in zip(ctx.spans, sums, strict=True):
            part, own_keys, own_values = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, start:end],
                queries[:, :, start:end],
                keys[:, :, :seen],
                values[:, :, :seen],
                attended[:, :, start:end],
                log_sum,
                0.0,
                False,
                attn_mask=_cast(bias, keys),
            )
            to_queries[:, :, start:end] = part
            to_keys[:, :, :seen] += own_keys
            to_values[:, :, :seen] += own_values
        return to_queries, to_keys, to_values, None


def _cast(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _uses_flash(queries: Tensor, backend: Backend) -> bool:
    """Returns whether flash-attn is used; raises if it is requested by name and cannot be."""
    usable = queries.is_cuda and queries.dtype in (torch.float16, torch.bfloat16)
    if backend == "flash" and not (usable and HAS_FLASH):
        raise ValueError(
            "attention=flash needs a CUDA device, half precision and flash-attn (pip install 'vidchat[flash]'); "
            "set it to auto"
        )
    return backend in ("auto", "flash") and usable and HAS_FLASH


@lru_cache(maxsize=2)
def _flex(device: str) -> Any:
    """FlexAttention, compiled once for all lengths but a few special ones."""
    if device != "cuda":
        return flex_attention
    # Beyond the limit it would run uncompiled and materialise an N x N matrix.
    torch._dynamo.config.recompile_limit = max(COMPILATIONS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True)
