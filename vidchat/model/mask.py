"""The block-causal mask that stacks are trained with, in the forms that the attention backends need.

dense   A full bool tensor.
spans   Runs of queries, each with a prefix of the keys.
flex    The block mask of FlexAttention (arXiv 2412.05496): tiles that are read in part or in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

SPAN = 64  # smallest number of queries in a span: below it, calls cost more than the work they save
TILE = 128  # queries and keys in a tile of FlexAttention's block mask


@dataclass(frozen=True, eq=False)
class BlockCausal:
    """Block-causal mask: every token sees the visible tokens of its own block and of all earlier blocks.

    With one token per block this is a language model's causal mask; with one chunk per block, that of next-chunk
    prediction. No token sees a hidden token; what a hidden token sees is unspecified, since its output is not used.

    Attributes:
        blocks: (B, N) int64 block of each key, nondecreasing along N; (1, N) if they are the same for all samples. The
            block of a hidden token at the end is arbitrary, but large.
        visible: (B, N) bool, False for padding and dropped conditions.
        queries: (1, M) int64 block of each query, nondecreasing, if the queries are not the keys' own tokens; `None` if
            they are.
    """

    blocks: Tensor
    visible: Tensor
    queries: Tensor | None = None

    @property
    def query_blocks(self) -> Tensor:
        """The block of each query, (B, M) or (1, M)."""
        return self.blocks if self.queries is None else self.queries

    def dense(self) -> Tensor:
        """Returns the mask (B, 1, M, N), True where a query (M) sees a key (N)."""
        rows, blocks = (x.to(self.visible.device, non_blocking=True) for x in (self.query_blocks, self.blocks))
        sees = (rows[:, :, None] >= blocks[:, None, :]) & self.visible[:, None, :]
        if self.queries is None:  # a hidden token must see something
            sees = sees | torch.eye(blocks.shape[1], dtype=torch.bool, device=blocks.device)
        return sees[:, None]

    @cached_property
    def spans(self) -> list[Span]:
        """Runs of queries, whole blocks of every sample, each with the prefix of keys that its last block sees."""
        rows = self.query_blocks
        ends = [*((rows.diff() != 0).any(0).nonzero().flatten() + 1).tolist(), rows.shape[1]]
        # Tensors on the meta device have no values; there, nothing is hidden.
        hidden = None if self.visible.is_meta or bool(self.visible.all()) else ~self.visible
        spans: list[Span] = []
        start, blocks = 0, 0  # of the current span
        for end in ends:
            blocks += 1
            if end - start < SPAN and end != ends[-1]:
                continue
            seen = (self.blocks <= rows[:, end - 1 :][:, :1]).sum(1)
            keys, bias = int(seen.max()), None
            if blocks > 1 or hidden is not None or int(seen.min()) < keys:
                span_rows = rows[:, start:end] if blocks > 1 else rows[:, end - 1 : end]  # rows of one block are equal
                unseen = (span_rows[:, :, None] < self.blocks[:, None, :keys]).to(self.visible.device)
                unseen = unseen if hidden is None else unseen | hidden[:, None, :keys]
                # Finite, so that a hidden token that sees nothing gets a number and not NaN.
                bias = torch.zeros(unseen.shape, device=unseen.device).masked_fill(unseen, -1e9)[:, None]
            spans.append(Span(start, end, keys, bias))
            start, blocks = end, 0
        return spans

    def flex(self, queries: int) -> BlockMask:
        """Returns the block mask of the last queries, built once per number of queries for all layers of a step."""
        if queries not in self._flex_masks:
            size = len(self.visible)
            rows, blocks = (
                x.to(self.visible.device, non_blocking=True).expand(size, -1).contiguous()
                for x in (self.query_blocks, self.blocks)
            )
            visible, see_themselves = self.visible, self.queries is None
            first = rows.shape[1] - queries
            # Tensors, not numbers: a number that `sees` captures would be a constant, and another one a recompilation.
            rows, index = rows[:, first:], torch.arange(first, rows.shape[1], device=blocks.device)

            def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (rows[batch, query] >= blocks[batch, key]) & visible[batch, key]
                return seen | (index[query] == key) if see_themselves else seen

            self._flex_masks[queries] = BlockMask.from_kv_blocks(
                *_tiles(rows, blocks, visible, see_themselves),
                BLOCK_SIZE=TILE,
                mask_mod=sees,
                seq_lengths=(queries, blocks.shape[1]),
            )
        return self._flex_masks[queries]

    @cached_property
    def _flex_masks(self) -> dict[int, BlockMask]:
        return {}

    def last_spans(self, queries: int) -> list[Span]:
        """Returns the spans of the last queries, numbered from the first of these, which may lie inside a span."""
        first = self.query_blocks.shape[1] - queries
        result = []
        for start, end, keys, bias in self.spans:
            if end > first:
                skipped = max(0, first - start)
                bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, skipped:]
                result.append(Span(start + skipped - first, end - first, keys, bias))
        return result


class Span(NamedTuple):
    """Queries start to end, which attend to the first `keys` keys, with a bias added to their scores or `None`."""

    start: int
    end: int
    keys: int
    bias: Tensor | None


def _tiles(
    rows: Tensor, blocks: Tensor, visible: Tensor, see_themselves: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns counts and indices of the tiles read in part, then of those read in full, as `BlockMask` takes them.

    They follow from the first and last block of each tile; `create_block_mask` would write out the whole mask and
    recompile for every length. A tile that extends beyond the last token is never full.

    Args:
        rows: (B, n) blocks of the queries.
        blocks: (B, N) blocks of the keys.
        visible: (B, N) bool.
        see_themselves: Whether the queries are the last of the N tokens, each of which sees itself.
    """
    tokens, queries = blocks.shape[1], rows.shape[1]
    starts = torch.arange(0, queries, TILE, device=rows.device)
    keys = torch.arange(0, tokens, TILE, device=rows.device)
    ends, key_ends = (starts + TILE).clamp(max=queries) - 1, (keys + TILE).clamp(max=tokens) - 1
    seen = F.pad(visible, (0, -tokens % TILE)).unflatten(1, (-1, TILE))
    inside = starts + TILE <= queries
    full = (rows[:, starts, None] >= blocks[:, None, key_ends]) & inside[:, None] & seen.all(-1)[:, None]
    read = (rows[:, ends, None] >= blocks[:, None, keys]) & seen.any(-1)[:, None]
    if see_themselves:
        first = tokens - queries
        read = read | (first + starts[:, None] <= key_ends) & (first + ends[:, None] >= keys)
    return (*_ordered(read & ~full), *_ordered(full))


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for bool tiles (B, q, k), the number of true ones per row, and the indices of each row, true ones first.

    Both are int32: (B, 1, q) and (B, 1, q, k).
    """
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None].contiguous()
