"""The spatial transformer of MAR (arXiv 2406.11838) and NOVA (arXiv 2412.14169): masked tokens are predicted together.

In training a random share of the tokens is masked. The first half of the layers reads the context and the visible
tokens only; in the second half, all tokens see each other. Every set recomputes all tokens.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from vidchat.model.spatial import SpatialContext, SpatialDecoder, SpatialTransformer, draw_order


def draw_masked_count(tokens: int) -> int:
    """Draws how many of S tokens are masked in this training step: a share from TruncNormal(1, 0.25) on [0.7, 1].

    One draw for the whole batch keeps the tensors rectangular (MAR's masking ratio).
    """
    share = torch.empty(())
    nn.init.trunc_normal_(share, mean=1.0, std=0.25, a=0.7, b=1.0)
    return max(1, math.ceil(tokens * share.item()))


def draw_seeded_masked_count(seed: int | None, tokens: int) -> int:
    """`draw_masked_count` as a function of a seed; it leaves the global generator as it was, or uses it with `None`."""
    if seed is None:
        return draw_masked_count(tokens)
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the generators of all devices
    try:
        return draw_masked_count(tokens)
    finally:
        torch.set_rng_state(state)


class MaskedTransformer(SpatialTransformer):
    """Predicts any number of masked tokens from the visible ones."""

    def training_pass(
        self, context: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        chunks, count = tokens.shape[:2]
        order = draw_order(chunks, count, tokens.device)
        visible = count - draw_seeded_masked_count(count_seed, count)
        return self(context, order, tokens, visible), order[:, visible:]

    def start_decoding(self, context: SpatialContext, order: Tensor) -> SpatialDecoder:
        return partial(self, context, order)

    def forward(
        self, context: SpatialContext, order: Tensor, tokens: Tensor, visible: int, size: int | None = None
    ) -> Tensor:
        """Encodes the visible tokens, then predicts masked ones.

        Args:
            context: Context of n chunks.
            order: (n, S) order in which tokens are filled in.
            tokens: (n, S, D_v) clean visual tokens; only the visible ones are read.
            visible: Number of visible tokens, the first of the order.
            size: Number of masked tokens to predict; `None` predicts all.

        Returns:
            (n, S - visible, W) for all masked tokens, in order, or (n, size, W) for the first of them.
        """
        prefix, end = context.prefix.shape[1], order.shape[1] if size is None else visible + size
        first = prefix + visible
        known, masked = order[:, :visible], order[:, visible:]
        index = torch.cat([torch.arange(prefix, device=order.device).expand(len(order), -1), prefix + order], dim=1)
        cos, sin = self.angles(context, index)
        encoded = torch.cat([context.prefix, self.visible_tokens(context, tokens, known)], dim=1)
        encoded = self.encoder.run(encoded, (cos[:, :, :first], sin[:, :, :first]))
        inputs = torch.cat([encoded, self.masked_tokens(context, masked)], dim=1)
        return self.decoder.run(inputs, (cos, sin), outputs=slice(first, prefix + end))
