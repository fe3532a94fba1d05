"""The spatial transformer: fills in the visual tokens of one chunk, set by set.

What its two kinds share: N sets are drawn in a random order on a cosine schedule, as in MAR (arXiv 2406.11838) and NOVA
(arXiv 2412.14169), each set knowing the chunk's context and the sets before it. `masked` is the one that these have,
`set_causal` a faster one.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vidchat.model.chunks import PatchUpsample
from vidchat.model.transformer import Shape, Transformer


@lru_cache(maxsize=32)
def spatial_positions(grid: tuple[int, int], ratio: int, steps: int, codec_frames: int, device: torch.device) -> Tensor:
    """Positions (1, S_b + F + S, 3) inside one chunk: its context, then its visual tokens, on the fine grid.

    The same for all chunks, hence kept; not to be written to.

    Args:
        grid: Rows and columns of the backbone's visual tokens.
        ratio: r; a backbone token stands in the middle of its r x r children.
        steps: 40 ms steps in a chunk.
        codec_frames: F.
        device: Where to make them.
    """

    def plane(rows: int, cols: int, scale: int, offset: float) -> Tensor:
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        return torch.stack([torch.full_like(row, steps), row, col], dim=-1).flatten(0, 1).float() * torch.tensor(
            [1, scale, scale]
        ) + torch.tensor([0, offset, offset])

    rows, cols = grid
    audio = torch.zeros(codec_frames, 3)
    audio[:, 0] = steps * (torch.arange(codec_frames) + 1) / max(codec_frames, 1)
    coarse, fine = plane(rows, cols, ratio, (ratio - 1) / 2), plane(rows * ratio, cols * ratio, 1, 0)
    return torch.cat([coarse, audio, fine])[None].to(device)


def set_sizes(tokens: int, sets: int) -> list[int]:
    """Sizes of the sets in which S tokens are drawn, small ones first; empty ones are left out.

    By the cosine schedule: after i of N sets, S cos(pi i / 2N) tokens are masked.
    """
    masked = [round(tokens * math.cos(math.pi / 2 * i / sets)) for i in range(sets + 1)]
    masked[0], masked[-1] = tokens, 0
    return [before - after for before, after in itertools.pairwise(masked) if before > after]


def draw_order(count: int, tokens: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """(n, S): a random order of the tokens for each of n chunks."""
    return torch.rand(count, tokens, device=device, generator=generator).argsort(dim=-1)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (n, S, D) at index (n, k)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SpatialContext(NamedTuple):
    """What is known of n chunks before any of their visual tokens is there.

    Attributes:
        context: (n, N, W) the backbone's outputs with the chunk's codes, projected.
        places: (n, S, W) what is known of each token's own place.
        positions: (1, N + S, 3) of the context, then of the places.
    """

    context: Tensor
    places: Tensor
    positions: Tensor


class SpatialDecoder(Protocol):
    """The visual tokens of n chunks while they are filled in."""

    def __call__(self, tokens: Tensor, filled: int, size: int) -> Tensor:
        """Conditions (n, size, W) of the next `size` tokens in the order that was begun with.

        Args:
            tokens: (n, S, D_v); of these, the first `filled` in the order are there, and no others are read.
            filled: The sizes of all sets before, together.
            size: Of the next set.
        """


class SpatialTransformer(nn.Module, ABC):
    """From a chunk's page and the tokens already there to the conditions of the flow head.

    Both kinds have the same parameters, under the same names.

    Args:
        shape: Of the stack; its layers are split in two halves.
        condition_width: D of the backbone.
        token_dim: D_v of a visual token.
        ratio: Backbone patch over spatial patch, per side.
    """

    def __init__(self, shape: Shape, condition_width: int, token_dim: int, ratio: int) -> None:
        super().__init__()
        if shape.layers < 2:
            raise ValueError("the spatial transformer has two halves, so it needs at least 2 layers")
        self.context = nn.Linear(condition_width, shape.width)
        # What the backbone predicts for a place also enters at that place.
        self.places = PatchUpsample(condition_width, shape.width, ratio)
        # So do the reference and the last chunk, whose fine tokens are more than the backbone's coarse ones can carry.
        self.seen = nn.Linear(2 * token_dim, shape.width)
        self.token = nn.Linear(token_dim, shape.width)
        self.mask_token = nn.Parameter(torch.randn(shape.width) * 0.02)
        halves = shape.layers // 2, shape.layers - shape.layers // 2
        self.encoder, self.decoder = (Transformer(Shape(**{**vars(shape), "layers": layers})) for layers in halves)

    @abstractmethod
    def training_pass(
        self, page: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One training pass, with an order and what is filled in by it drawn at random.

        Args:
            page: Of n chunks.
            tokens: (n, S, D_v) the true ones.
            count_seed: Seed of how many tokens are predicted, `None` for the global generator; what predicts every
                token ignores it.

        Returns:
            Conditions (n, m, W) of the tokens to be predicted, and their indices (n, m).
        """

    @abstractmethod
    def start_decoding(self, page: SpatialContext, order: Tensor) -> SpatialDecoder:
        """Begin to fill in n chunks.

        Args:
            page: Of n chunks.
            order: (n, S) in which their tokens will be drawn.
        """

    def visible_tokens(self, page: SpatialContext, tokens: Tensor, order: Tensor) -> Tensor:
        """(n, k, W) what enters for the true tokens at indices (n, k)."""
        return self.token(gather_tokens(tokens, order)) + gather_tokens(page.places, order)

    def masked_tokens(self, page: SpatialContext, order: Tensor) -> Tensor:
        """(n, k, W) what enters for the masked tokens at indices (n, k)."""
        return self.mask_token + gather_tokens(page.places, order)

    def angles(self, page: SpatialContext, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary angles at indices (n, k) of the page's positions."""
        # Both halves turn by the same angles, of which one table serves all chunks.
        cos, sin = self.encoder.angles(page.positions)
        return cos[0, 0][index].unsqueeze(1), sin[0, 0][index].unsqueeze(1)
