"""Chunks as tokens: patches, embeddings, and positions in time and space.

A chunk puts S visual tokens (patchified latents, row-major) and F audio tokens (one per codec frame, the sum of its K
codebook embeddings) into the backbone, in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from vidchat.batch import RESPONDER


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


def chunk_positions(
    start: Tensor, chunks: Tensor, grid: tuple[int, int], latent: LatentShape, codec_frames: int
) -> Tensor:
    """Returns the positions (time, row, column) of the tokens of chunks.

    A token's time is the end of the span it covers, in 40 ms steps: a latent frame ends with its last frame, a codec
    frame with its last sample, so audio and video of one instant share their time.

    Args:
        start: (B,) position on all three axes at which this sequence of chunks starts.
        chunks: (T,) or (B, T) index of each chunk; chunk 0 is the reference.
        grid: Rows and columns of visual tokens.
        latent: Shape of the latents, for the number of steps in a chunk.
        codec_frames: F; 0 for a model without audio.

    Returns:
        (B, T, S + F, 3) float.
    """
    rows, cols = grid
    device = start.device
    origin = start.float()[:, None, None, None]
    chunks = torch.broadcast_to(chunks.to(device), (start.shape[0], chunks.shape[-1]))
    time = (chunks.float() * latent.steps)[..., None, None]  # (B, T, 1, 1)
    row, col = torch.meshgrid(torch.arange(rows, device=device), torch.arange(cols, device=device), indexing="ij")
    within = torch.stack([torch.zeros_like(row), row, col], dim=-1).flatten(0, 1).float()  # (S, 3)
    visual = origin + within + pad(time, (0, 2))
    if not codec_frames:
        return visual
    # Ends of the codec frames, relative to the end of the chunk.
    ends = latent.steps * ((torch.arange(codec_frames, device=device) + 1) / codec_frames - 1)
    audio = origin + pad(time + ends[:, None], (0, 2))
    return torch.cat([visual, audio], dim=2)


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
    """Embeds chunks as backbone tokens: the answer's, the initiator's and those of earlier turns alike.

    Args:
        width: D.
        token_dim: Values in one of the backbone's visual tokens.
        codes: Shape of the audio codec's codes; `None` for a model without audio.
    """

    def __init__(self, width: int, token_dim: int, codes: CodeShape | None) -> None:
        super().__init__()
        self.visual = nn.Linear(token_dim, width)
        nn.init.normal_(self.visual.weight, std=token_dim**-0.5)
        self.role = nn.Embedding(3, width)
        nn.init.normal_(self.role.weight, std=0.02)
        self.codec_frames = codes.codec_frames if codes else 0
        if codes:
            self.codes = CodeEmbedding(width, codes)
            # Distinguishes audio tokens from visual ones; `sound` is its name in released weights.
            self.sound = nn.Parameter(torch.randn(width) * 0.02)
            self.start = nn.Parameter(torch.randn(width) * 0.02)  # stands for the missing codes of chunk 0

    def embed_visual(self, tokens: Tensor, roles: Tensor) -> Tensor:
        """Returns tokens (B, T, S, D) for visual tokens (B, T, S, token_dim) and roles (B, T)."""
        return self.visual(tokens) + self.role(roles).unsqueeze(2)

    def embed_codes(self, codes: Tensor, roles: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Returns tokens (B, T, F, D) for codes (B, T, F, K) and roles (B, T).

        Chunks that are `hidden` (B, T) get start tokens instead.
        """
        embedded = self.codes(codes)
        if hidden is not None:
            embedded = torch.where(hidden[..., None, None], self.start, embedded)
        return embedded + self.sound + self.role(roles).unsqueeze(2)

    def start_tokens(self, batch: int) -> Tensor:
        """Returns the audio tokens (B, 1, F, D) of chunk 0."""
        return (self.start + self.sound + self.role.weight[RESPONDER]).expand(batch, 1, self.codec_frames, -1)


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
