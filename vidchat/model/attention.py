"""Attention: one function, `attend`, and the mask that the backbone trains with, computed in four ways.

Which is fastest where (docs/performance.md has the figures):

    spans   SDPA over growing prefixes, one call for a few blocks: half of the work of a dense mask. CPU.
    flex    FlexAttention (arXiv 2412.05496), compiled, with a block mask that a stack's layers share. CUDA, training.
    dense   SDPA with the mask written out. The reference that the others are tested against.
    flash   flash-attn, where there is no mask: the spatial and the depth transformer, and a chunk that is generated
            after cached ones if no condition is padded. CUDA, half precision (`precision=bf16`).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

Backend = Literal["auto", "spans", "flex", "dense", "flash"]

SPAN = 64  # tokens to a span at least: below, calls cost more than the work they save
TILE = 128  # queries and keys to a tile of FlexAttention's block mask
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None  # not asked in `attend`, which is compiled
COMPILATIONS = 64  # of FlexAttention at most: short sequences, batch sizes and dtypes have their own


@dataclass(frozen=True, eq=False)
class BlockCausal:
    """Who sees whom: every token sees the visible tokens of its own block and of all earlier blocks.

    With one token to a block this is a language model's causal mask; with a chunk to a block, next-chunk prediction.
    Nobody sees a hidden token; what one sees itself is left open, since nobody reads its output.

    Attributes:
        blocks: (N,) int64, nondecreasing, on the CPU: it depends on shapes alone, so nobody waits for a device.
        visible: (B, N) bool, False for padding and dropped conditions.
        readers: (M,) int64, nondecreasing, on the CPU: the blocks of queries that are not themselves keys. `None`: the
            queries are the tokens themselves.
    """

    blocks: Tensor
    visible: Tensor
    readers: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The block of each query."""
        return self.blocks if self.readers is None else self.readers

    def dense(self) -> Tensor:
        """(B, 1, M, N) bool, True where a query (second to last axis) sees a key (last axis)."""
        rows, blocks = (x.to(self.visible.device, non_blocking=True) for x in (self.rows, self.blocks))
        sees = (rows[:, None] >= blocks[None, :]) & self.visible[:, None, :]
        if self.readers is None:  # a hidden token must see something
            sees = sees | torch.eye(len(blocks), dtype=torch.bool, device=blocks.device)
        return sees[:, None]

    @cached_property
    def spans(self) -> list[Span]:
        """Runs of whole blocks of queries, each with the keys that any of them sees."""
        rows = self.rows
        ends = [*(rows.diff().nonzero().flatten() + 1).tolist(), len(rows)]
        hidden = None if bool(self.visible.all()) else ~self.visible
        spans: list[Span] = []
        start, blocks = 0, 0
        for end in ends:
            blocks += 1
            if end - start < SPAN and end != ends[-1]:
                continue
            keys, added = int((self.blocks <= rows[end - 1]).sum()), None
            if blocks > 1 or hidden is not None:
                own = rows[start:end] if blocks > 1 else rows[end - 1 : end]  # one row serves one block
                unseen = (own[:, None] < self.blocks[None, :keys]).to(self.visible.device)[None]
                unseen = unseen if hidden is None else unseen | hidden[:, None, :keys]
                # Finite, so that a hidden token that sees nothing at all gets numbers and not NaN.
                added = torch.zeros(unseen.shape, device=unseen.device).masked_fill(unseen, -1e9)[:, None]
            spans.append(Span(start, end, keys, added))
            start, blocks = end, 0
        return spans

    def flex(self, queries: int) -> BlockMask:
        """The block mask of the last queries, made once for all layers of a step that have as many."""
        if queries not in self._flex_masks:
            rows, blocks = (x.to(self.visible.device, non_blocking=True) for x in (self.rows, self.blocks))
            visible, itself = self.visible, self.readers is None
            first = len(rows) - queries
            # Tensors, not numbers: a number that `sees` knows would be compiled in, and another one compiled anew.
            own, places = rows[first:], torch.arange(first, len(rows), device=blocks.device)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (own[query] >= blocks[key]) & visible[batch, key]
                return seen | (places[query] == key) if itself else seen

            self._flex_masks[queries] = BlockMask.from_kv_blocks(
                *_tiles(own, blocks, visible, itself),
                BLOCK_SIZE=TILE,
                mask_mod=sees,
                seq_lengths=(queries, len(blocks)),
            )
        return self._flex_masks[queries]

    @cached_property
    def _flex_masks(self) -> dict[int, BlockMask]:
        return {}

    def last_spans(self, queries: int) -> list[Span]:
        """The spans of the last queries, counted from the first of these, which may lie inside a span."""
        first = len(self.rows) - queries
        result = []
        for start, end, keys, added in self.spans:
            if end > first:
                skipped = max(0, first - start)
                added = added if added is None or added.shape[2] == 1 else added[:, :, skipped:]
                result.append(Span(start + skipped - first, end - first, keys, added))
        return result


class Span(NamedTuple):
    """Queries start to end on the first `keys` keys, with what is added to their scores, if anything."""

    start: int
    end: int
    keys: int
    added: Tensor | None


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: BlockCausal | Tensor | None = None,
    causal: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """Scaled dot-product attention with grouped key and value heads.

    Args:
        queries: (B, H, n, head_dim); with `BlockCausal`, the last n of those that it knows.
        keys: (B, G, N, head_dim), G divides H.
        values: (B, G, N, head_dim).
        mask: `BlockCausal`, or bool broadcastable to (B, H, n, N), True where a query sees a key; `None` is everything.
        causal: Token by token, instead of a mask.
        backend: How the block-causal mask is computed, or `flash` where there is none; `auto` takes the fastest.

    Returns:
        (B, H, n, head_dim).

    Raises:
        ValueError: the backend cannot compute this mask here.
    """
    if isinstance(mask, BlockCausal):
        return _block_causal(queries, keys, values, mask, backend)
    if mask is None and _uses_flash(queries, backend):
        from flash_attn import flash_attn_func

        turned = (x.transpose(1, 2) for x in (queries, keys, values))
        return flash_attn_func(*turned, causal=causal).transpose(1, 2)
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1 and not causal and (mask is None or mask.shape[1:3] == (1, 1)):
        # Queries that share a key head stand side by side, so that keys and values need not be copied.
        folded = queries.unflatten(1, (-1, groups)).flatten(2, 3)
        attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask)
        return attended.unflatten(2, (groups, -1)).flatten(1, 2)
    keys, values = _repeat(keys, groups), _repeat(values, groups)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal)


def _block_causal(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal, backend: Backend) -> Tensor:
    device = queries.device.type
    if backend in ("auto", "flash"):  # flash is for where there is no mask
        # What is computed once, as before an answer, is not worth a compilation; and flex has no heads this small.
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


@torch.compiler.disable  # inside a compiled block, another number of tokens would be another compilation of the block
def _in_tiles(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal) -> Tensor:
    flex, grouped = _flex(queries.device.type), queries.shape[1] > keys.shape[1]
    attended: Tensor = flex(queries, keys, values, block_mask=mask.flex(queries.shape[2]), enable_gqa=grouped)
    return attended


@torch.compiler.disable  # how many spans there are is data, and their kernels are compiled already
def _in_spans(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockCausal) -> Tensor:
    spans = mask.last_spans(queries.shape[2])
    if queries.device.type == "cpu":
        return _Spans.apply(queries, keys, values, spans)
    parts = [
        F.scaled_dot_product_attention(
            queries[:, :, start:end], keys[:, :, :seen], values[:, :, :seen], attn_mask=_as(added, queries)
        )
        for start, end, seen, added in spans
    ]
    return torch.cat(parts, dim=2)


class _Spans(torch.autograd.Function):
    """Span by span through the kernels that SDPA uses on a CPU.

    Autograd through slices would fill and add a tensor of full size for every prefix; here each adds to its own part.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, spans: list[Span]) -> Tensor:
        attended, sums = torch.empty_like(queries), []
        for start, end, seen, added in spans:
            part, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries[:, :, start:end], keys[:, :, :seen], values[:, :, :seen], 0.0, False, attn_mask=_as(added, keys)
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
        for (start, end, seen, added), log_sum in zip(ctx.spans, sums, strict=True):
            part, own_keys, own_values = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient[:, :, start:end],
                queries[:, :, start:end],
                keys[:, :, :seen],
                values[:, :, :seen],
                attended[:, :, start:end],
                log_sum,
                0.0,
                False,
                attn_mask=_as(added, keys),
            )
            to_queries[:, :, start:end] = part
            to_keys[:, :, :seen] += own_keys
            to_values[:, :, :seen] += own_values
        return to_queries, to_keys, to_values, None


def _tiles(own: Tensor, blocks: Tensor, visible: Tensor, itself: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which tiles of keys each tile of queries reads in part, and which as a whole, as `BlockMask` counts them.

    From each tile's first and last block alone: `create_block_mask` writes the whole mask out, and is compiled anew for
    other lengths. A tile that ends beyond the last token is never whole.

    Args:
        own: (n,) blocks of the queries.
        blocks: (N,) of the keys.
        visible: (B, N).
        itself: Whether the queries are the last of the N tokens, each of which sees itself.
    """
    tokens, queries = len(blocks), len(own)
    starts = torch.arange(0, queries, TILE, device=own.device)
    keys = torch.arange(0, tokens, TILE, device=own.device)
    ends, key_ends = (starts + TILE).clamp(max=queries) - 1, (keys + TILE).clamp(max=tokens) - 1
    seen = F.pad(visible, (0, -tokens % TILE)).unflatten(1, (-1, TILE))
    inside = starts + TILE <= queries
    whole = (own[starts][:, None] >= blocks[key_ends]) & inside[:, None] & seen.all(-1)[:, None]
    some = (own[ends][:, None] >= blocks[keys]) & seen.any(-1)[:, None]
    if itself:
        first = tokens - queries
        some = some | (first + starts[:, None] <= key_ends) & (first + ends[:, None] >= keys)
    return (*_ordered(some & ~whole), *_ordered(whole))


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Of bool (B, q, k): how many of each row are true (B, 1, q), and all, true ones first (B, 1, q, k), both int32."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None].contiguous()


def _as(added: Tensor | None, like: Tensor) -> Tensor | None:
    return None if added is None else added.to(like.dtype)


def _repeat(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _uses_flash(queries: Tensor, backend: Backend) -> bool:
    """Whether flash-attn computes this; asked for by name, it must."""
    usable = queries.is_cuda and queries.dtype in (torch.float16, torch.bfloat16)
    if backend == "flash" and not (usable and HAS_FLASH):
        raise ValueError(
            "attention=flash needs a CUDA device, half precision and flash-attn (pip install 'vidchat[flash]'); "
            "set it to auto"
        )
    return backend in ("auto", "flash") and usable and HAS_FLASH


@lru_cache(maxsize=2)
def _flex(device: str) -> Any:
    """Compiled once for all lengths, but for a few special ones."""
    if device != "cuda":
        return flex_attention
    # Beyond the limit it would not run compiled, that is, as one N x N matrix.
    torch._dynamo.config.recompile_limit = max(COMPILATIONS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True)
