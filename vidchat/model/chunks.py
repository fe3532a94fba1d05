"""Chunks as tokens: patches, embeddings, and positions in time and space.

A said chunk puts S visual tokens (patchified latents, row-major) and F audio tokens (one per codec frame, the sum of
its K codebook embeddings) into the backbone, in this order; a still has start tokens in place of audio. A heard chunk's
video is read at a larger patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from vidchat.batch import INITIATOR, RESPONDER


@dataclass(frozen=True)
class LatentShape:
    """Shape of the video tokenizer's latents.

    Attributes:
        channels: C, channels of a latent.
        steps: Number of frames in a chunk; at 25 fps, also its number of 40 ms steps, the unit of positions in time.
    """

    channels: int
    steps: int


@dataclass(frozen=True)
class CodeShape:
    """Shape of the audio codec's codes: F codec frames in a chunk, K codebooks of V entries."""

    codec_frames: int
    codebooks: int
    vocabulary: int


@dataclass(frozen=True)
class TokenShapes:
    """Shapes of the outputs of the three tokenizers.

    Attributes:
        latent: Shape of the video tokenizer's latents.
        codes: Shape of the audio codec's codes; `None` for a model without audio.
        vocabulary: Number of ids of the text tokenizer.
    """

    latent: LatentShape
    codes: CodeShape | None = None
    vocabulary: int = 256


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Returns the visual tokens (..., S, D_v) of latents (..., C, h, w); S = (h/patch)(w/patch), D_v = C * patch^2."""
    return rearrange(latents, "... c (h p) (w q) -> ... (h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Tensor, patch: int, rows: int, cols: int) -> Tensor:
    """Returns the latents (..., C, rows * patch, cols * patch) of visual tokens (..., S, D_v)."""
    return rearrange(tokens, "... (h w) (c p q) -> ... c (h p) (w q)", p=patch, q=patch, h=rows, w=cols)


def patchify_padded(latents: Tensor, patch: int) -> Tensor:
    """Returns the visual tokens of latents (..., C, h, w) as `patchify` does, after padding to whole patches."""
    height, width = latents.shape[-2:]
    return patchify(pad(latents, (0, -width % patch, 0, -height % patch)), patch)


def video_positions(times: Tensor, grid: tuple[int, int], scale: int = 1) -> Tensor:
    """Returns the positions (time, row, column) of the visual tokens of chunks, (B, n, S, 3).

    Args:
        times: (B, n, 3) position of each chunk's end in time, and of its upper left corner.
        grid: Rows and columns of visual tokens.
        scale: Number of rows, and of columns, of a said chunk's tokens that one of these tokens covers; it stands at
            their centre.
    """
    rows, cols = (torch.arange(side, device=times.device) * scale + (scale - 1) / 2 for side in grid)
    row, col = torch.meshgrid(rows, cols, indexing="ij")
    within = torch.stack([torch.zeros_like(row), row, col], dim=-1).flatten(0, 1)
    return times[:, :, None] + within


def audio_positions(times: Tensor, steps: int, codec_frames: int) -> Tensor:
    """Returns the positions (time, row, column) of the audio tokens of chunks, (B, n, F, 3).

    A token's time is the end of the span it covers: audio and video of one instant share their time.

    Args:
        times: (B, n, 3), see `video_positions`.
        steps: Number of 40 ms steps in a chunk.
        codec_frames: F.
    """
    ends = steps * ((torch.arange(codec_frames, device=times.device) + 1) / codec_frames - 1)
    return times[:, :, None] + pad(ends[:, None], (0, 2))


class CodeEmbedding(nn.Module):
    """Maps codes (..., F, K) to (..., F, D): the sum of a codec frame's K codebook embeddings."""

    def __init__(self, width: int, codes: CodeShape) -> None:
        super().__init__()
        self.table = nn.Embedding(codes.codebooks * codes.vocabulary, width)
        nn.init.normal_(self.table.weight, std=codes.codebooks**-0.5)
        self.register_buffer("offsets", torch.arange(codes.codebooks) * codes.vocabulary, persistent=False)
        self.offsets: Tensor

    def forward(self, codes: Tensor) -> Tensor:
        return self.table(codes + self.offsets).sum(dim=-2)


class ChunkEmbedding(nn.Module):
    """Embeds chunks as backbone tokens.

    Args:
        width: D.
        token_dim: Values in one of a said chunk's visual tokens.
        codes: Shape of the audio codec's codes; `None` for a model without audio.
        heard_dim: Values in one of a heard chunk's visual tokens; `None` for a model that hears nothing.
    """

    def __init__(self, width: int, token_dim: int, codes: CodeShape | None, heard_dim: int | None = None) -> None:
        super().__init__()
        self.visual = _projection(token_dim, width)
        self.heard = None if heard_dim is None else _projection(heard_dim, width)
        self.role = nn.Embedding(3, width)
        nn.init.normal_(self.role.weight, std=0.02)
        self.codec_frames = codes.codec_frames if codes else 0
        if codes:
            self.codes = CodeEmbedding(width, codes)
            # Distinguishes audio tokens from visual ones; `sound` is its name in released weights.
            self.sound = nn.Parameter(torch.randn(width) * 0.02)
            self.start = nn.Parameter(torch.randn(width) * 0.02)  # stands for the missing codes of a still

    def embed_said(self, tokens: Tensor) -> Tensor:
        """Returns tokens (B, n, S, D) for the responder's visual tokens (B, n, S, token_dim)."""
        return self.visual(tokens) + self.role.weight[RESPONDER]

    def embed_heard(self, tokens: Tensor) -> Tensor:
        """Returns tokens (B, u, S_h, D) for the initiator's visual tokens (B, u, S_h, heard_dim)."""
        assert self.heard is not None, "checked by the responder"
        return self.heard(tokens) + self.role.weight[INITIATOR]

    def embed_codes(self, codes: Tensor, roles: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Returns tokens (B, n, F, D) for codes (B, n, F, K) and roles (B, n).

        Chunks that are `hidden` (B, n) get start tokens instead.
        """
        embedded = self.codes(codes)
        if hidden is not None:
            embedded = torch.where(hidden[..., None, None], self.start, embedded)
        return embedded + self.sound + self.role(roles).unsqueeze(2)


def _projection(inputs: int, width: int) -> nn.Linear:
    linear = nn.Linear(inputs, width)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear


class PatchUpsample(nn.Module):
    """Maps each coarse backbone token to the r x r visual tokens it covers.

    Args:
        width: Width of the input.
        fine_width: Width of the output.
        ratio: r, backbone patch over spatial patch, per side.
    """

    def __init__(self, width: int, fine_width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.project = nn.Linear(width, ratio**2 * fine_width)

    def forward(self, coarse: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps tokens (n, S_b, width) on a grid of S_b positions to (n, S, fine_width), row-major."""
        rows, cols = grid
        fine, r = self.project(coarse), self.ratio
        return rearrange(fine, "n (h w) (p q d) -> n (h p w q) d", h=rows, w=cols, p=r, q=r)
