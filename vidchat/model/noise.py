"""What keeps a model from trusting its history too much.

Noise injection, the paper's cure for drift: the visual tokens that the backbone reads as history (never the targets)
are mixed with Gaussian noise at a level drawn per chunk, and the model is told the level. At generation the level is a
setting. Code dropout does to audio what noise does to frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vidchat.sinusoid import sinusoid


class NoiseInjection(nn.Module):
    """Mixes history with noise and embeds the level.

    Args:
        width: D of the backbone.
        max_level: sigma_max; training draws levels from U(0, sigma_max).
    """

    def __init__(self, width: int, max_level: float) -> None:
        super().__init__()
        if not 0 < max_level < 1:
            raise ValueError(f"sigma_max must lie between 0 and 1, got {max_level}; null switches noise off")
        self.max_level = max_level
        self.embed = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def draw_levels(self, batch: int, chunks: int, device: torch.device) -> Tensor:
        """(B, T) levels for training."""
        return torch.rand(batch, chunks, device=device) * self.max_level

    def mix(self, latents: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """sqrt(1 - l^2) x + l e, of unit variance if `latents` are; level 0 returns the latents bit for bit.

        Args:
            latents: (B, T, C, h, w), normalised.
            levels: (B, T) in [0, 1).
            generator: Source of the noise.
        """
        sigma = levels[..., None, None, None].to(latents.dtype)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return (1 - sigma**2).sqrt() * latents + sigma * noise

    def embed_levels(self, levels: Tensor) -> Tensor:
        """(B, T, D) embeddings of the levels, exactly zero at level 0."""
        return self.embed(sinusoid(levels * 1000, 64)) * levels.unsqueeze(-1)


def draw_hidden_chunks(batch: int, chunks: int, dropout: float, device: torch.device) -> Tensor:
    """(B, T) bool: chunks of the history whose codes are hidden in training; a share from U(0, dropout) of each answer.

    Words already said tell the next ones better than the condition does, so a model that always sees them learns to
    go on, not to answer. Where they are hidden, only the condition tells (word dropout, arXiv 1511.06349).
    """
    share = torch.rand(batch, 1, device=device) * dropout
    return torch.rand(batch, chunks, device=device) < share
