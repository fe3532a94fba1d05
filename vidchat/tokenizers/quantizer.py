"""Residual vector quantisation: a vector becomes K codes, each naming what the codes before it left over.

Sources: vector quantisation with a straight-through gradient, commitment loss and codebooks that follow a moving
average of what is assigned to them, van den Oord et al. 2017 (arXiv 1711.00937, section 3.2 and appendix A.1); the
residual cascade, k-means initialisation and the revival of dead codes, SoundStream (Zeghidour et al. 2021, arXiv
2107.03312, section III-C); training with a random number of codebooks (quantiser dropout), the same section.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidchat.runtime.distributed import copy_from_first_rank, gather_over_ranks, sum_over_ranks

MOST = 1024  # codebooks; a foreign config may ask for any number


@dataclass
class Quantized:
    """What came out of a quantiser.

    Attributes:
        vectors: (..., D), the sum of the chosen entries; its gradient goes straight through to the input.
        codes: (..., K) int64.
        commitment: scalar, mean squared distance of each residual to its entry, averaged over codebooks; its gradient
            pulls the encoder's output to the entries, never the entries.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """One codebook that follows a moving average of the vectors assigned to it.

    Attributes:
        codebook: (V, D) buffer.
        usage: (V,) buffer, moving average of each entry's share of a batch's vectors; 1 is an even share.
    """

    codebook: Tensor
    usage: Tensor

    def __init__(self, vocabulary: int, width: int, decay: float = 0.99, revive_below: float = 0.05) -> None:
        """
        Args:
            vocabulary: V, entries.
            width: D.
            decay: Of the moving averages, per training step.
            revive_below: An entry is dead when its usage falls below this; it is then put where a vector of the
                current batch lies.
        """
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codebook", torch.randn(vocabulary, width))
        self.register_buffer("usage", torch.ones(vocabulary))

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) -> the nearest entries' indices (...)."""
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        # |v - e|^2 without the |v|^2 that all entries share; bf16 could not tell near entries apart.
        with torch.autocast(flat.device.type, enabled=False):
            distance = self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        return distance.argmin(1).view(vectors.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Indices (...) -> entries (..., D)."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, iterations: int = 20) -> None:
        """Sets the codebook by k-means over vectors (N, D), N >= 1, the same on every rank."""
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        vocabulary = self.codebook.shape[0]
        self.codebook.copy_(_draw(flat, vocabulary))
        for _ in range(iterations):
            counts, sums = self._assigned(flat, self.encode(flat))
            means = sums / counts.clamp(min=1e-9)[:, None]
            self.codebook.copy_(torch.where((counts > 0)[:, None], means, _draw(flat, vocabulary)))
        self.usage.fill_(1.0)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Moves the entries towards the vectors (..., D) assigned to them, and revives dead entries.

        With N the usage and m = N x entry, both are moving averages and entry = m / N (1711.00937, equations 6 to 8).
        All ranks' vectors move the entries together, and alike; vectors that are not finite move nothing.
        """
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        counts, sums = self._assigned(flat, codes.reshape(-1))
        good = sums.isfinite().all()
        mass = self.codebook * self.usage[:, None]
        usage = self.decay * self.usage + (1 - self.decay) * counts
        mass = self.decay * mass + (1 - self.decay) * sums
        moved = mass / usage.clamp(min=1e-6)[:, None]
        self.codebook.copy_(torch.where(good & (usage > 1e-6)[:, None], moved, self.codebook))
        self.usage.copy_(torch.where(good, usage, self.usage))
        self._revive(gather_over_ranks(flat), good)

    def _revive(self, flat: Tensor, good: Tensor) -> None:
        dead = good & (self.usage < self.revive_below)
        self.codebook.copy_(torch.where(dead[:, None], _draw(flat, len(dead)), self.codebook))
        self.usage.masked_fill_(dead, 1.0)

    def _assigned(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Each entry's share of the vectors (V,), mean 1, and their sums (V, D) on that scale, over all processes."""
        counts = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
        counts, sums = sum_over_ranks(counts), sum_over_ranks(sums)
        scale = len(counts) / counts.sum()
        return counts * scale, sums * scale


class ResidualQuantizer(nn.Module):
    """K codebooks, each quantising what those before it left over."""

    def __init__(self, codebooks: int, vocabulary: int, width: int, decay: float = 0.99, dropout: float = 0.0) -> None:
        """
        Args:
            codebooks: K.
            vocabulary: V, entries in each.
            width: D, of the vectors.
            decay: See `VectorQuantizer`.
            dropout: In training, the probability that a batch item uses only its first k codebooks, k uniform in
                1 .. K. It makes the first codes carry more, as they must when a model predicts them first.
        """
        super().__init__()
        self.dropout = dropout
        if not 1 <= codebooks <= MOST:
            raise ValueError(f"codebooks must be 1 to {MOST}, got {codebooks}")
        self.levels = nn.ModuleList(VectorQuantizer(vocabulary, width, decay) for _ in range(codebooks))

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) -> codes (..., K)."""
        residual, codes = vectors.float(), []
        for level in self._levels():
            codes.append(level.encode(residual))
            residual = residual - level.decode(codes[-1])
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., K) -> vectors (..., D), the sum of the entries."""
        return torch.stack([level.decode(codes[..., k]) for k, level in enumerate(self._levels())]).sum(0)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises vectors (B, n, D); in training mode also moves the codebooks."""
        vectors = vectors.float()
        keep = self._kept(vectors)
        quantized, residual = torch.zeros_like(vectors), vectors
        codes, commitment = [], vectors.new_zeros(())
        for k, level in enumerate(self._levels()):
            codes.append(level.encode(residual.detach()))
            entries = level.decode(codes[-1])
            if self.training:
                level.update(residual.detach(), codes[-1])
            used = (k < keep)[:, None, None]
            commitment = commitment + (used * (residual - entries).square()).mean() / len(self.levels)
            quantized = quantized + used * entries
            residual = residual - entries
        straight = vectors + (quantized - vectors).detach()
        return Quantized(straight, torch.stack(codes, -1), commitment)

    @torch.no_grad()
    def initialize(self, vectors: Tensor) -> None:
        """Sets every codebook by k-means over vectors (N, D) and their residuals."""
        residual = vectors.reshape(-1, vectors.shape[-1]).float()
        for level in self._levels():
            level.initialize(residual)
            residual = residual - level.decode(level.encode(residual))

    def _kept(self, vectors: Tensor) -> Tensor:
        """(B,), how many codebooks each batch item uses."""
        count, batch = len(self.levels), vectors.shape[0]
        every = torch.full((batch,), count, device=vectors.device)
        if not self.training or self.dropout == 0:
            return every
        fewer = torch.randint(1, count + 1, (batch,), device=vectors.device)
        return torch.where(torch.rand(batch, device=vectors.device) < self.dropout, fewer, every)

    def _levels(self) -> list[VectorQuantizer]:
        return list(self.levels)  # type: ignore[arg-type]


def code_use(codes: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """How much of each codebook is in use.

    Args:
        codes: (..., K).
        vocabulary: V.

    Returns:
        (K,) the number of entries that occur, and (K,) the perplexity (the effective number, 1 .. V) of their use.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    counts = torch.zeros(vocabulary, flat.shape[1], device=codes.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
    share = counts / flat.shape[0]
    return (counts > 0).sum(0), torch.exp(-torch.xlogy(share, share).sum(0))


def _draw(flat: Tensor, count: int) -> Tensor:
    """Count rows of flat (N, D), as different as N allows; of every rank's, those that rank 0 draws."""
    order = torch.randperm(flat.shape[0], device=flat.device)
    rows = flat[order.repeat(-(-count // flat.shape[0]))[:count]].clone()
    copy_from_first_rank([rows])
    return rows
