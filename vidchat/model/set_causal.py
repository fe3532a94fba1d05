"""The set-causal spatial transformer: every token is read once, whatever the number of sets.

In `masked`, each set changes what all earlier tokens see, so every set recomputes them. Here a token sees the context,
the sets before its own and its own set (block-causal over sets, as in arXiv 2410.10511), so its keys and values can be
cached. Tokens to be predicted are queries only: mask tokens at their positions attend to the cached keys (as in arXiv
2503.10568), so one training pass predicts all sets of a chunk. The first half of the layers reads known tokens, the
second half runs the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidchat.model.cache import Cache
from vidchat.model.mask import BlockCausal
from vidchat.model.spatial import SpatialContext, SpatialDecoder, SpatialTransformer, draw_order, set_sizes
from vidchat.model.transformer import Memory

MIN_SETS, MAX_SETS = 4, 64  # in training


def draw_set_count(tokens: int) -> int:
    """Draws the number of sets for S tokens in this training step: log-uniform on [4, 64], at most S.

    One draw for the whole batch gives all chunks the same mask.
    """
    low, high = min(MIN_SETS, tokens), min(MAX_SETS, tokens)
    return round(low * (high / low) ** torch.rand(()).item())


class SetCausalTransformer(SpatialTransformer):
    """Predicts every token from the sets before its own."""

    def training_pass(
        self, context: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        chunks, count = tokens.shape[:2]
        order = draw_order(chunks, count, tokens.device)
        return self(context, order, tokens, set_sizes(count, draw_set_count(count))), order

    def start_decoding(self, context: SpatialContext, order: Tensor) -> SpatialDecoder:
        return CachedSpatialDecoder(self, context, order)

    def forward(self, context: SpatialContext, order: Tensor, tokens: Tensor, sizes: list[int]) -> Tensor:
        """Predicts all tokens in one pass, each given the sets before its own.

        Args:
            context: Context of n chunks.
            order: (n, S) order in which tokens are filled in.
            tokens: (n, S, D_v) true visual tokens.
            sizes: Sizes of the sets; their sum is S.

        Returns:
            (n, S, W), in order.
        """
        known = order[:, : order.shape[1] - sizes[-1]]  # no set follows the last one and reads it
        sets = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        prefix = context.prefix.shape[1]
        blocks = torch.cat([torch.zeros(prefix, dtype=torch.long), 1 + sets[: known.shape[1]]])
        visible = torch.ones(len(order), len(blocks), dtype=torch.bool, device=order.device)
        index = torch.arange(prefix, device=order.device).expand(len(order), -1)
        angles = self.angles(context, torch.cat([index, prefix + known], dim=1))
        inputs = torch.cat([context.prefix, self.visible_tokens(context, tokens, known)], dim=1)
        memory = self.encoder.run(inputs, angles, BlockCausal(blocks[None], visible)), angles
        mask, queries = BlockCausal(blocks[None], visible, queries=sets[None]), self.masked_tokens(context, order)
        return self.decoder.run(queries, self.angles(context, prefix + order), mask, memory=memory)


class CachedSpatialDecoder:
    """Caches keys and values of the tokens read so far, in both halves. A set is read when the next one is predicted.

    Args:
        spatial: The spatial transformer.
        context: Context of n chunks.
        order: (n, S) order in which their tokens are drawn.
    """

    def __init__(self, spatial: SetCausalTransformer, context: SpatialContext, order: Tensor) -> None:
        self.spatial, self.context, self.order = spatial, context, order
        prefix = context.prefix.shape[1]
        self.cos, self.sin = spatial.angles(context, prefix + order)
        capacity = prefix + order.shape[1]
        self.encoder_cache = Cache(spatial.encoder.shape.layers, capacity)
        self.decoder_cache = Cache(spatial.decoder.shape.layers, capacity)
        angles = spatial.encoder.angles(context.positions[:, :prefix])
        # Outputs of the encoder that the decoder's cache does not hold yet.
        self.memory: Memory = spatial.encoder.run(context.prefix, angles, cache=self.encoder_cache), angles
        self.filled = 0

    def __call__(self, tokens: Tensor, filled: int, size: int) -> Tensor:
        if filled > self.filled:
            drawn = slice(self.filled, filled)
            inputs = self.spatial.visible_tokens(self.context, tokens, self.order[:, drawn])
            angles = self._angles(drawn)
            self.memory = self.spatial.encoder.run(inputs, angles, cache=self.encoder_cache), angles
            self.filled = filled
        predicted = slice(filled, filled + size)
        queries = self.spatial.masked_tokens(self.context, self.order[:, predicted])
        return self.spatial.decoder.run(queries, self._angles(predicted), cache=self.decoder_cache, memory=self.memory)

    def _angles(self, span: slice) -> tuple[Tensor, Tensor]:
        return self.cos[:, :, span], self.sin[:, :, span]
