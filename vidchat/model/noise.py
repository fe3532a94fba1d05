"""Two regularisers that keep the model from relying too much on its history.

Noise injection, the paper's cure for drift: the visual tokens that the backbone reads as history (never the targets)
are mixed with Gaussian noise at a level drawn per chunk, and the level is given to the model. At generation the level
is a setting. Code dropout hides the codes of past chunks, as noise blurs their video.
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
        """Draws levels (B, T) for training."""
        return torch.rand(batch, chunks, device=device) * self.max_level

    def mix(self, latents: Tensor, levels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns sqrt(1 - l^2) x + l e, (B, T, C, h, w), of variance 1; level 0 returns the latents bit for bit.

        Args:
            latents: (B, T, C, h, w), normalised.
            levels: (B, T) in [0, 1).
            generator: Source of the noise.
        """
        sigma = levels[..., None, None, None].to(latents.dtype)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)
        return (1 - sigma**2).sqrt() * latents + sigma * noise

    def embed_levels(self, levels: Tensor) -> Tensor:
        """Returns embeddings (B, T, D) of levels (B, T), exactly zero at level 0."""
        return self.embed(sinusoid(levels * 1000, 64)) * levels.unsqueeze(-1)


def draw_hidden_chunks(batch: int, chunks: int, dropout: float, device: torch.device) -> Tensor:
    """Draws the chunks of the history whose codes are hidden in training, (B, T) bool.

    The share of hidden chunks is drawn from U(0, dropout) for each answer.

    Words already said predict the next ones better than the conditions do, so a model that always sees them learns to
    continue rather than to answer. Where they are hidden, it must use the conditions (word dropout, arXiv 1511.06349).
    """
    share = torch.rand(batch, 1, device=device) * dropout
    return torch.rand(batch, chunks, device=device) < share
