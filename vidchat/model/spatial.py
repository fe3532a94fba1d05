"""The spatial transformer: fills in the visual tokens of one chunk, set by set.

After MAR (arXiv 2406.11838) and NOVA (arXiv 2412.14169): in training a random share of the tokens is masked; at
generation N sets are drawn in a random order on a cosine schedule. The first half of the layers runs on the condition
and the visible tokens only.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from vidchat.model.chunks import Children
from vidchat.model.transformer import Shape, Transformer


@lru_cache(maxsize=32)
def spatial_positions(grid: tuple[int, int], ratio: int, steps: int, frames: int, device: torch.device) -> Tensor:
    """Positions (1, S_b + F + S, 3) inside one chunk: its context, then its visual tokens, on the fine grid.

    The same for all chunks, hence kept; not to be written to.

    Args:
        grid: Rows and columns of the backbone's visual tokens.
        ratio: r; a backbone token stands in the middle of its r x r children.
        steps: 40 ms steps in a chunk.
        frames: F.
        device: Where to make them.
    """

    def plane(rows: int, cols: int, scale: int, offset: float) -> Tensor:
        row, col = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
        return torch.stack([torch.full_like(row, steps), row, col], dim=-1).flatten(0, 1).float() * torch.tensor(
            [1, scale, scale]
        ) + torch.tensor([0, offset, offset])

    rows, cols = grid
    sound = torch.zeros(frames, 3)
    sound[:, 0] = steps * (torch.arange(frames) + 1) / max(frames, 1)
    coarse, fine = plane(rows, cols, ratio, (ratio - 1) / 2), plane(rows * ratio, cols * ratio, 1, 0)
    return torch.cat([coarse, sound, fine])[None].to(device)


def draw_masked_count(tokens: int) -> int:
    """How many of S tokens are masked in this training step: a share from TruncNormal(1, 0.25) on [0.7, 1].

    One draw for the whole batch keeps the tensors rectangular (MAR's mask law).
    """
    share = torch.empty(())
    nn.init.trunc_normal_(share, mean=1.0, std=0.25, a=0.7, b=1.0)
    return max(1, math.ceil(tokens * share.item()))


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


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (n, S, D) at index (n, k)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


class SpatialTransformer(nn.Module):
    """From a chunk's context and the tokens already there to the conditions of the flow head.

    Args:
        shape: Of the stack; its layers are split in two halves.
        condition_width: D of the backbone.
        token_dim: D_v of a visual token.
        ratio: Backbone patch over spatial patch, per side.
        masked_keys: Whether masked tokens are read by the others in the second half, as in MAR and NOVA. Without, they
            only read: one masked token's prediction is then the same whichever others are asked for, so generation
            computes those of the next set and no others.
    """

    def __init__(
        self, shape: Shape, condition_width: int, token_dim: int, ratio: int, masked_keys: bool = True
    ) -> None:
        super().__init__()
        self.masked_keys = masked_keys
        if shape.layers < 2:
            raise ValueError("the spatial transformer has two halves, so it needs at least 2 layers")
        self.context = nn.Linear(condition_width, shape.width)
        # What the backbone predicts for a place also enters at that place.
        self.places = Children(condition_width, shape.width, ratio)
        # So do the reference and the last chunk, whose fine tokens are more than the backbone's coarse ones can carry.
        self.seen = nn.Linear(2 * token_dim, shape.width)
        self.token = nn.Linear(token_dim, shape.width)
        self.mask_token = nn.Parameter(torch.randn(shape.width) * 0.02)
        halves = shape.layers // 2, shape.layers - shape.layers // 2
        self.encoder, self.decoder = (Transformer(Shape(**{**vars(shape), "layers": layers})) for layers in halves)

    def forward(
        self,
        context: Tensor,
        places: Tensor,
        positions: Tensor,
        tokens: Tensor,
        order: Tensor,
        visible: int,
        wanted: int | None = None,
    ) -> Tensor:
        """Encode what is there, then predict what is not.

        Args:
            context: (n, N, W) the chunk's backbone outputs with its codes, projected by `self.context`.
            places: (n, S, W) what is known of each token's own place, from `self.places` and `self.seen`.
            positions: (1, N + S, 3).
            tokens: (n, S, D_v) clean visual tokens; only the visible ones are read.
            order: (n, S) the order in which tokens are filled.
            visible: How many of the first tokens in that order are there.
            wanted: How many of the masked tokens are predicted; `None` is all.

        Returns:
            (n, S - visible, W) for the masked tokens, in order, or (n, wanted, W) for the first of them.
        """
        prefix, asked = context.shape[1], order.shape[1] if wanted is None else visible + wanted
        first = prefix + visible
        if not self.masked_keys:
            order = order[:, :asked]  # nobody reads the others
        known, missing = order[:, :visible], order[:, visible:]
        index = torch.cat([torch.arange(prefix, device=order.device).expand(len(order), -1), prefix + order], dim=1)
        # Both halves turn by the same angles, of which one table serves all chunks.
        cos, sin = (table[0, 0][index].unsqueeze(1) for table in self.encoder.angles(positions))
        encoded = torch.cat([context, self.token(take(tokens, known)) + take(places, known)], dim=1)
        encoded = self.encoder.run(encoded, (cos[:, :, :first], sin[:, :, :first]))
        everything = torch.cat([encoded, self.mask_token + take(places, missing)], dim=1)
        readable = None if self.masked_keys else first
        return self.decoder.run(everything, (cos, sin), wanted=slice(first, prefix + asked), readable=readable)
