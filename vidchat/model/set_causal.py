"""The set-causal spatial transformer: every token is read once, however many sets there are.

In `masked` each set changes what all earlier tokens see, so every set computes them all anew. Here a token sees the
page, the sets before its own and its own (block-causal over sets, as arXiv 2410.10511), hence its keys and values are
kept. Tokens that are asked for only read (queries of places on kept keys, as arXiv 2503.10568), so that one pass of
training asks for all sets of a chunk. The first half of the layers reads, the second asks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidchat.model.cache import Cache
from vidchat.model.mask import BlockCausal
from vidchat.model.spatial import SpatialContext, SpatialDecoder, SpatialTransformer, draw_order, set_sizes
from vidchat.model.transformer import Memory

FEWEST, MOST = 4, 64  # sets


def draw_set_count(tokens: int) -> int:
    """In how many sets S tokens are filled in this training step: log-uniform on [4, 64], at most S.

    One draw for the whole batch: all chunks have the same mask then.
    """
    fewest, most = min(FEWEST, tokens), min(MOST, tokens)
    return round(fewest * (most / fewest) ** torch.rand(()).item())


class SetCausalTransformer(SpatialTransformer):
    """Predicts every token from the sets before its own."""

    def training_pass(
        self, page: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        count, places = tokens.shape[:2]
        order = draw_order(count, places, tokens.device)
        return self(page, order, tokens, set_sizes(places, draw_set_count(places))), order

    def start_decoding(self, page: SpatialContext, order: Tensor) -> SpatialDecoder:
        return CachedSpatialDecoder(self, page, order)

    def forward(self, page: SpatialContext, order: Tensor, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Predict all tokens at once, each knowing the sets before its own.

        Args:
            page: Of n chunks.
            order: (n, S) the order in which tokens are filled.
            tokens: (n, S, D_v) the true ones.
            sizes: Of the sets, S together.

        Returns:
            (n, S, W), in order.
        """
        known = order[:, : order.shape[1] - sizes[-1]]  # nobody reads the last set
        sets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        prefix = page.context.shape[1]
        blocks = torch.cat([torch.zeros(prefix, dtype=torch.long), 1 + sets[: known.shape[1]]])
        visible = torch.ones(len(order), len(blocks), dtype=torch.bool, device=order.device)
        context = torch.arange(prefix, device=order.device).expand(len(order), -1)
        at = self.angles(page, torch.cat([context, prefix + known], dim=1))
        read = torch.cat([page.context, self.visible_tokens(page, tokens, known)], dim=1)
        memory = self.encoder.run(read, at, BlockCausal(blocks, visible)), at
        mask, queries = BlockCausal(blocks, visible, readers=sets), self.masked_tokens(page, order)
        return self.decoder.run(queries, self.angles(page, prefix + order), mask, memory=memory)


class CachedSpatialDecoder:
    """Keeps keys and values of all that was read, of both halves. A set is read when the next one is asked for.

    Args:
        spatial: The model.
        page: Of n chunks.
        order: (n, S) in which their tokens are drawn.
    """

    def __init__(self, spatial: SetCausalTransformer, page: SpatialContext, order: Tensor) -> None:
        self.spatial, self.page, self.order = spatial, page, order
        prefix = page.context.shape[1]
        self.cos, self.sin = spatial.angles(page, prefix + order)
        capacity = prefix + order.shape[1]
        self.encoded, self.kept = (Cache(half.shape.layers, capacity) for half in (spatial.encoder, spatial.decoder))
        angles = spatial.encoder.angles(page.positions[:, :prefix])
        self.pending: Memory = spatial.encoder.run(page.context, angles, cache=self.encoded), angles
        self.filled = 0

    def __call__(self, tokens: Tensor, filled: int, size: int) -> Tensor:
        if filled > self.filled:
            drawn = slice(self.filled, filled)
            read = self.spatial.visible_tokens(self.page, tokens, self.order[:, drawn])
            angles = self._angles(drawn)
            self.pending = self.spatial.encoder.run(read, angles, cache=self.encoded), angles
            self.filled = filled
        asked = slice(filled, filled + size)
        queries = self.spatial.masked_tokens(self.page, self.order[:, asked])
        return self.spatial.decoder.run(queries, self._angles(asked), cache=self.kept, memory=self.pending)

    def _angles(self, some: slice) -> tuple[Tensor, Tensor]:
        return self.cos[:, :, some], self.sin[:, :, some]
