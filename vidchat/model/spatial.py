"""The spatial transformer: fills in the visual tokens of one chunk, set by set.

The tokens are drawn in N sets, in a random order on a cosine schedule, as in MAR (arXiv 2406.11838) and NOVA (arXiv
2412.14169); each set is given the chunk's context and the sets before it. This module holds what the two variants
share: `masked`, the variant of MAR and NOVA, and `set_causal`, a faster one.
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
    """Returns positions (1, S_b + F + S, 3) inside one chunk: its context, then its visual tokens, on the fine grid.

    They are the same for all chunks, hence cached; callers must not write to them.

    Args:
        grid: Rows and columns of the backbone's visual tokens.
        ratio: r; a backbone token stands at the centre of the r x r visual tokens it covers.
        steps: Number of 40 ms steps in a chunk.
        codec_frames: F.
        device: Device of the result.
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
    """Returns the sizes of the sets in which S tokens are drawn, small ones first and without empty ones.

    On the cosine schedule, S cos(pi i / 2N) tokens are still masked after i of N sets.
    """
    masked = [round(tokens * math.cos(math.pi / 2 * i / sets)) for i in range(sets + 1)]
    masked[0], masked[-1] = tokens, 0
    return [before - after for before, after in itertools.pairwise(masked) if before > after]


def draw_order(count: int, tokens: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Returns a random order of the tokens of each of n chunks, (n, S)."""
    return torch.rand(count, tokens, device=device, generator=generator).argsort(dim=-1)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Returns the tokens (n, k, D) of x (n, S, D) at indices (n, k)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SpatialContext(NamedTuple):
    """What is known of n chunks before any of their visual tokens is drawn.

    Attributes:
        prefix: (n, N, W) tokens that all visual tokens see: the backbone's outputs with the chunk's codes, projected.
        local: (n, S, W) embedding of what is known at each visual token's own position.
        positions: (1, N + S, 3) positions of the prefix, then of the visual tokens.
    """

    prefix: Tensor
    local: Tensor
    positions: Tensor


class SpatialDecoder(Protocol):
    """Computes the conditions of the flow head, set by set, for n chunks that are being filled in."""

    def __call__(self, tokens: Tensor, filled: int, size: int) -> Tensor:
        """Returns conditions (n, size, W) for the next `size` tokens of the order given to `start_decoding`.

        Args:
            tokens: (n, S, D_v) visual tokens; only the first `filled` of the order are read.
            filled: Number of tokens in all earlier sets.
            size: Number of tokens in the next set.
        """


class SpatialTransformer(nn.Module, ABC):
    """Maps a chunk's context and its known visual tokens to conditions of the flow head.

    Both variants have the same parameters, under the same names.

    Args:
        shape: Sizes of the stack; its layers are split into two halves.
        condition_width: D of the backbone.
        token_dim: D_v of a visual token.
        ratio: Backbone patch over spatial patch, per side.
    """

    def __init__(self, shape: Shape, condition_width: int, token_dim: int, ratio: int) -> None:
        super().__init__()
        if shape.layers < 2:
            raise ValueError("the spatial transformer has two halves, so model.spatial.layers must be at least 2")
        self.context = nn.Linear(condition_width, shape.width)
        # The backbone's output at a position is also added to the visual tokens at that position.
        self.places = PatchUpsample(condition_width, shape.width, ratio)
        # So are the reference and the last chunk, whose detail the backbone's coarse tokens cannot carry.
        self.seen = nn.Linear(2 * token_dim, shape.width)
        self.token = nn.Linear(token_dim, shape.width)
        self.mask_token = nn.Parameter(torch.randn(shape.width) * 0.02)
        halves = shape.layers // 2, shape.layers - shape.layers // 2
        self.encoder, self.decoder = (Transformer(Shape(**{**vars(shape), "layers": layers})) for layers in halves)

    @abstractmethod
    def training_pass(
        self, context: SpatialContext, tokens: Tensor, count_seed: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs one training pass, with the order and the sets drawn at random.

        Args:
            context: Context of n chunks.
            tokens: (n, S, D_v) true visual tokens.
            count_seed: Seed of the number of predicted tokens, `None` for the global generator; ignored by a variant
                that predicts every token.

        Returns:
            Conditions (n, m, W) of the predicted tokens, and their indices (n, m).
        """

    @abstractmethod
    def start_decoding(self, context: SpatialContext, order: Tensor) -> SpatialDecoder:
        """Starts to fill in n chunks.

        Args:
            context: Context of the n chunks.
            order: (n, S) order in which their tokens will be drawn.
        """

    def visible_tokens(self, context: SpatialContext, tokens: Tensor, index: Tensor) -> Tensor:
        """Returns the inputs (n, k, W) for the known tokens at indices (n, k)."""
        return self.token(gather_tokens(tokens, index)) + gather_tokens(context.local, index)

    def masked_tokens(self, context: SpatialContext, index: Tensor) -> Tensor:
        """Returns the inputs (n, k, W) for the masked tokens at indices (n, k)."""
        return self.mask_token + gather_tokens(context.local, index)

    def angles(self, context: SpatialContext, index: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the rotary angles, (n, 1, k, head_dim) each, at indices (n, k) of the context's positions."""
        # Both halves use the same angles, and one table serves all chunks.
        cos, sin = self.encoder.angles(context.positions)
        return cos[0, 0][index].unsqueeze(1), sin[0, 0][index].unsqueeze(1)
