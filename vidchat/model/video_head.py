"""The frame of a chunk, as the depth transformer is its audio: two verbs, `loss` and `sample`.

The spatial transformer, knowing the backbone's outputs and the chunk's codes, fills in the visual tokens set by set;
the flow head draws each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.model.chunks import CodeEmbedding, PatchUpsample, patchify, unpatchify
from vidchat.model.flow import FlowHead
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.graphs import CapturedLoops
from vidchat.model.spatial import (
    SpatialContext,
    SpatialTransformer,
    draw_order,
    gather_tokens,
    set_sizes,
    spatial_positions,
)

Grid = tuple[int, int]


@dataclass(frozen=True)
class HeadInputs:
    """What the frames of n chunks are drawn from.

    Attributes:
        hidden: (n, N, D) the backbone's outputs at the chunk before, visual ones first.
        reference: (n, C, h, w) latents of chunk 0.
        last: (n, C, h, w) latents of the chunk before, as noisy as the backbone read them.
        codes: (n, F, K) of the chunk itself; `None` without audio.
        count_seed: In training, the seed of how many tokens of a chunk are predicted; `None` draws it with all else.
    """

    hidden: Tensor
    reference: Tensor
    last: Tensor
    codes: Tensor | None
    count_seed: int | None = None

    def of(self, chunks: Tensor) -> HeadInputs:
        """Some of them, by index."""
        codes = None if self.codes is None else self.codes[chunks]
        return HeadInputs(self.hidden[chunks], self.reference[chunks], self.last[chunks], codes, self.count_seed)


@dataclass(frozen=True)
class VideoHead:
    """Not a module: its parts are the responder's own, under the names that they have there.

    Attributes:
        spatial: The spatial transformer; `None` lets the flow head read the backbone's output.
        direct: What then leads from the backbone's places to visual tokens.
        flow: The flow head.
        codes: Embeds the chunk's codes; `None` without audio.
        patch: Side of a visual token in latents.
        ratio: r, the backbone's visual patch over that, per side.
        steps: 40 ms steps in a chunk.
    """

    spatial: SpatialTransformer | None
    direct: PatchUpsample | None
    flow: FlowHead
    codes: CodeEmbedding | None
    patch: int
    ratio: int
    steps: int

    def loss(self, given: HeadInputs, targets: Tensor, grid: Grid, weight: Tensor) -> Tensor:
        """Flow loss over the tokens that are predicted, the mean over chunks.

        Args:
            given: Of n chunks.
            targets: (n, C, h, w) their latents.
            grid: Rows and columns of the backbone's visual tokens.
            weight: (n,) of each chunk, 0 for padding.
        """
        tokens = patchify(targets, self.patch)
        count = len(tokens)
        if self.spatial is None:
            condition, wanted = self._direct(given.hidden, grid), tokens
        else:
            condition, index = self.spatial.training_pass(self._spatial_context(given, grid), tokens, given.count_seed)
            wanted = gather_tokens(tokens, index)
        each = self.flow.loss(wanted.flatten(0, 1), condition.flatten(0, 1)).view(count, -1).mean(1)
        return (each * weight).sum() / weight.sum().clamp(min=1)

    def sample(
        self,
        given: HeadInputs,
        grid: Grid,
        sampling: ChunkSampling,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draw the latents (n, C, h, w) of n chunks.

        Args:
            given: Of n chunks; with guidance of 2n, conditioned ones first.
            grid: Rows and columns of the backbone's visual tokens.
            sampling: How.
            generator: Source of all randomness.
            graphs: Of the flow head's loops, used on CUDA.
        """
        hidden, copies = given.hidden, 1 if sampling.guidance == 1 else 2
        count = len(hidden) // copies
        rows, cols = (side * self.ratio for side in grid)
        tokens = hidden.new_zeros(count, rows * cols, self.flow.token_dim, dtype=torch.float32)
        if self.spatial is None:
            order = torch.arange(rows * cols, device=hidden.device).expand(count, -1)
            sizes, condition = [rows * cols], self._direct(hidden, grid)
        else:
            order = draw_order(count, rows * cols, hidden.device, generator)
            sizes = set_sizes(rows * cols, sampling.sets)
            ask = self.spatial.start_decoding(self._spatial_context(given, grid), order.repeat(copies, 1))
        filled = 0
        for size in sizes:
            if self.spatial is not None:
                condition = ask(tokens.repeat(copies, 1, 1), filled, size)
            drawn = self.flow.sample(
                condition.flatten(0, 1), sampling.flow_steps, sampling.guidance, sampling.temperature, generator, graphs
            )
            places = order[:, filled : filled + size, None].expand(-1, -1, tokens.shape[-1])
            tokens.scatter_(1, places, drawn.view(count, size, -1))
            filled += size
        return unpatchify(tokens, self.patch, rows, cols)

    def _spatial_context(self, given: HeadInputs, grid: Grid) -> SpatialContext:
        """What the spatial transformer starts from."""
        assert self.spatial is not None
        hidden = context = given.hidden
        visual = hidden[:, : grid[0] * grid[1]]
        codec_frames = hidden.shape[1] - visual.shape[1]
        if given.codes is not None:
            assert self.codes is not None
            audio = hidden[:, visual.shape[1] :] + self.codes(given.codes)
            context = torch.cat([visual, audio.to(visual.dtype)], dim=1)
        positions = spatial_positions(grid, self.ratio, self.steps, codec_frames, hidden.device)
        seen = patchify(torch.cat([given.reference, given.last], dim=1), self.patch)
        places = self.spatial.places(visual, grid) + self.spatial.seen(seen)
        return SpatialContext(self.spatial.context(context), places, positions)

    def _direct(self, hidden: Tensor, grid: Grid) -> Tensor:
        assert self.direct is not None
        return self.direct(hidden[:, : grid[0] * grid[1]], grid)
