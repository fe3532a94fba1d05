"""The video of a chunk, with two verbs, `loss` and `sample`, as the depth transformer has them for its audio.

The spatial transformer, given the backbone's outputs and the chunk's codes, fills in the visual tokens set by set; the
flow head draws each token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

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
REDRAW_EVALUATIONS = 4  # of the flow head, when chunks of the history are drawn anew in training


@dataclass(frozen=True)
class HeadInputs:
    """Inputs from which the video of n chunks is drawn.

    Attributes:
        hidden: (n, N, D) the backbone's outputs at the chunk before, visual ones first.
        reference: (n, C, h, w) latents of chunk 0.
        last: (n, C, h, w) latents of the chunk before, with the noise that the backbone read them with.
        codes: (n, F, K) codes of the chunk itself; `None` without audio.
        count_seed: In training, seed of the number of tokens predicted per chunk; `None` uses the global generator.
    """

    hidden: Tensor
    reference: Tensor
    last: Tensor
    codes: Tensor | None
    count_seed: int | None = None

    def select(self, chunks: Tensor) -> HeadInputs:
        """Returns the inputs of some of the chunks, given their indices (m,)."""
        codes = None if self.codes is None else self.codes[chunks]
        return HeadInputs(self.hidden[chunks], self.reference[chunks], self.last[chunks], codes, self.count_seed)


@dataclass(frozen=True)
class VideoHead:
    """Joins the spatial transformer and the flow head.

    It is not a module: its parts belong to the responder, which holds their parameters under their names.

    Attributes:
        spatial: The spatial transformer; with `None`, the flow head reads the backbone's outputs.
        direct: Upsampling of the backbone's outputs to visual tokens, used without a spatial transformer.
        flow: The flow head.
        embed_codes: Embedding of the chunk's codes; `None` without audio.
        patch: Side of a visual token, in latents.
        ratio: r, the backbone's visual patch over the spatial transformer's, per side.
        steps: Number of 40 ms steps in a chunk.
    """

    spatial: SpatialTransformer | None
    direct: PatchUpsample | None
    flow: FlowHead
    embed_codes: CodeEmbedding | None
    patch: int
    ratio: int
    steps: int

    def loss(self, inputs: HeadInputs, targets: Tensor, grid: Grid, weight: Tensor) -> Tensor:
        """Returns the flow loss over the predicted tokens, a scalar: the weighted mean over chunks.

        Args:
            inputs: Inputs of n chunks.
            targets: (n, C, h, w) true latents of the chunks.
            grid: Rows and columns of the backbone's visual tokens.
            weight: (n,) weights of the chunks, 0 for padding.
        """
        tokens = patchify(targets, self.patch)
        count = len(tokens)
        if self.spatial is None:
            condition = self._upsample(inputs.hidden, grid)
        else:
            context = self._spatial_context(inputs, grid)
            condition, index = self.spatial.training_pass(context, tokens, inputs.count_seed)
            tokens = gather_tokens(tokens, index)
        losses = self.flow.loss(tokens.flatten(0, 1), condition.flatten(0, 1)).view(count, -1).mean(1)
        return (losses * weight).sum() / weight.sum().clamp(min=1)

    def sample(
        self,
        inputs: HeadInputs,
        grid: Grid,
        sampling: ChunkSampling,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draws the latents (n, C, h, w) of n chunks.

        Args:
            inputs: Inputs of n chunks; with guidance of 2n, conditional ones first.
            grid: Rows and columns of the backbone's visual tokens.
            sampling: Sampling settings.
            generator: Source of all randomness.
            graphs: Captured loops of the flow head, used on CUDA.
        """
        hidden, copies = inputs.hidden, 1 if sampling.guidance == 1 else 2
        count = len(hidden) // copies
        rows, cols = (side * self.ratio for side in grid)
        tokens = hidden.new_zeros(count, rows * cols, self.flow.token_dim, dtype=torch.float32)
        if self.spatial is None:
            order = torch.arange(rows * cols, device=hidden.device).expand(count, -1)
            sizes, condition = [rows * cols], self._upsample(hidden, grid)
        else:
            order = draw_order(count, rows * cols, hidden.device, generator)
            sizes = set_sizes(rows * cols, sampling.sets)
            decode = self.spatial.start_decoding(self._spatial_context(inputs, grid), order.repeat(copies, 1))
        filled = 0
        for size in sizes:
            if self.spatial is not None:
                condition = decode(tokens.repeat(copies, 1, 1), filled, size)
            drawn = self.flow.sample(
                condition.flatten(0, 1), sampling.flow_steps, sampling.guidance, sampling.temperature, generator, graphs
            )
            index = order[:, filled : filled + size, None].expand(-1, -1, tokens.shape[-1])
            tokens.scatter_(1, index, drawn.view(count, size, -1))
            filled += size
        return unpatchify(tokens, self.patch, rows, cols)

    def redraw(self, inputs: HeadInputs, latents: Tensor, grid: Grid) -> Tensor:
        """Returns true latents (n, C, h, w) of n chunks in which the model has drawn many tokens anew.

        Of each chunk, the tokens that a training pass predicts are noised to a random level and denoised again, so they
        have the errors that the model makes in generation.

        Args:
            inputs: Inputs of the chunks.
            latents: (n, C, h, w) true latents of the chunks.
            grid: Rows and columns of the backbone's visual tokens.
        """
        tokens = patchify(latents, self.patch)
        if self.spatial is None:
            condition = self._upsample(inputs.hidden, grid)
            index = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        else:
            context = self._spatial_context(inputs, grid)
            condition, index = self.spatial.training_pass(context, tokens, inputs.count_seed)
        drawn = gather_tokens(tokens, index)
        level = torch.rand(len(tokens), 1, 1, device=tokens.device).expand(-1, drawn.shape[1], -1).flatten(0, 1)
        redrawn = self.flow.redraw(drawn.flatten(0, 1).float(), condition.flatten(0, 1), level, REDRAW_EVALUATIONS)
        index = index.unsqueeze(-1).expand_as(drawn)
        tokens = tokens.scatter(1, index, redrawn.view_as(drawn).to(tokens.dtype))
        return unpatchify(tokens, self.patch, *(side * self.ratio for side in grid))

    def _spatial_context(self, inputs: HeadInputs, grid: Grid) -> SpatialContext:
        """Inputs of the spatial transformer that are known before any visual token of the chunk."""
        assert self.spatial is not None
        hidden = outputs = inputs.hidden
        visual = hidden[:, : grid[0] * grid[1]]
        codec_frames = hidden.shape[1] - visual.shape[1]
        if inputs.codes is not None:
            assert self.embed_codes is not None
            codes = self.embed_codes(inputs.codes)  # at the backbone's scale, which may be small
            audio = hidden[:, visual.shape[1] :] + rms_norm(codes, codes.shape[-1:])
            outputs = torch.cat([visual, audio.to(visual.dtype)], dim=1)
        positions = spatial_positions(grid, self.ratio, self.steps, codec_frames, hidden.device)
        seen = patchify(torch.cat([inputs.reference, inputs.last], dim=1), self.patch)
        local = self.spatial.places(visual, grid) + self.spatial.seen(seen)
        return SpatialContext(self.spatial.context(outputs), local, positions)

    def _upsample(self, hidden: Tensor, grid: Grid) -> Tensor:
        assert self.direct is not None
        return self.direct(hidden[:, : grid[0] * grid[1]], grid)
