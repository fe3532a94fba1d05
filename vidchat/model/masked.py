"""The spatial transformer of MAR (arXiv 2406.11838) and NOVA (arXiv 2412.14169): masked tokens are predicted together.

In training a random share of the tokens is masked. The first half of the layers runs on the context and the visible
tokens only; in the second everybody sees everybody. For each set everything is computed anew.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from vidchat.model.spatial import SpatialContext, SpatialDecoder, SpatialTransformer, draw_order


def draw_masked_count(tokens: int) -> int:
    """How many of S tokens are masked in this training step: a share from TruncNormal(1, 0.25) on [0.7, 1].

    One draw for the whole batch keeps the tensors rectangular (MAR's mask law).
    """
    share = torch.empty(())
    nn.init.trunc_normal_(share, mean=1.0, std=0.25, a=0.7, b=1.0)
    return max(1, math.ceil(tokens * share.item()))


def draw_masked_count_of(seed: int | None, tokens: int) -> int:
    """The same, as a function of the seed if there is one, whatever the state of the global generator."""
    if seed is None:
        return draw_masked_count(tokens)
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices' generators, too
    try:
        return draw_masked_count(tokens)
    finally:
        torch.set_rng_state(state)


class MaskedTransformer(SpatialTransformer):
    """Predicts any number of masked tokens from those that are there."""

    def training_pass(
        self, page: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        count, places = tokens.shape[:2]
        order = draw_order(count, places, tokens.device)
        visible = places - draw_masked_count_of(count_seed, places)
        return self(page, order, tokens, visible), order[:, visible:]

    def start_decoding(self, page: SpatialContext, order: Tensor) -> SpatialDecoder:
        return partial(self, page, order)

    def forward(
        self, page: SpatialContext, order: Tensor, tokens: Tensor, visible: int, wanted: int | None = None
    ) -> Tensor:
        """Encode what is there, then predict what is not.

        Args:
            page: Of n chunks.
            order: (n, S) the order in which tokens are filled.
            tokens: (n, S, D_v) clean visual tokens; only the visible ones are read.
            visible: How many of the first tokens in that order are there.
            wanted: How many of the masked tokens are predicted; `None` is all.

        Returns:
            (n, S - visible, W) for the masked tokens, in order, or (n, wanted, W) for the first of them.
        """
        prefix, asked = page.context.shape[1], order.shape[1] if wanted is None else visible + wanted
        first = prefix + visible
        known, missing = order[:, :visible], order[:, visible:]
        index = torch.cat([torch.arange(prefix, device=order.device).expand(len(order), -1), prefix + order], dim=1)
        cos, sin = self.angles(page, index)
        encoded = torch.cat([page.context, self.visible_tokens(page, tokens, known)], dim=1)
        encoded = self.encoder.run(encoded, (cos[:, :, :first], sin[:, :, :first]))
        everything = torch.cat([encoded, self.masked_tokens(page, missing)], dim=1)
        return self.decoder.run(everything, (cos, sin), wanted=slice(first, prefix + asked))
