"""Who sees whom: the block-causal mask that stacks are trained with, in the forms that attention needs.

dense   written out.
spans   runs of queries, each with a prefix of the keys.
flex    tiles of FlexAttention (arXiv 2412.05496): which are read, and which as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

SPAN = 64  # tokens to a span at least: below, calls cost more than the work they save
TILE = 128  # queries and keys to a tile of FlexAttention's block mask


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
        # On the meta device there are no values: a mask there hides nothing.
        hidden = None if self.visible.is_meta or bool(self.visible.all()) else ~self.visible
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
