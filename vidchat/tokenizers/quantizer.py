"""Residual vector quantisation: a vector becomes K codes, each quantising the residual of the codes before it.

Vector quantisation with a straight-through gradient, a commitment loss and codebooks updated by a moving average is
from van den Oord et al. 2017 (arXiv 1711.00937, section 3.2 and appendix A.1). The residual cascade, k-means
initialisation, the replacement of unused entries and training with a random number of codebooks (quantiser dropout) are
from SoundStream (Zeghidour et al. 2021, arXiv 2107.03312, section III-C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidchat.runtime.distributed import copy_from_first_rank, gather_over_ranks, sum_over_ranks

MAX_CODEBOOKS = 1024  # bounds the memory that an untrusted config can request


@dataclass
class Quantized:
    """Output of a residual quantiser.

    Attributes:
        vectors: Sum of the chosen entries (..., D), with a straight-through gradient to the input.
        codes: Codes (..., K) int64.
        commitment: Scalar: mean squared distance of each residual to its entry, averaged over codebooks. Its gradient
            moves the encoder's output towards the entries; the entries have no gradient.
    """

    vectors: Tensor
    codes: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """One codebook, updated by a moving average of the vectors assigned to its entries.

    Attributes:
        codebook: Buffer (V, D).
        usage: Buffer (V,): moving average of each entry's share of a batch's vectors; 1 is an even share.
    """

    codebook: Tensor
    usage: Tensor

    def __init__(self, vocabulary: int, width: int, decay: float = 0.99, revive_below: float = 0.05) -> None:
        """
        Args:
            vocabulary: V, the number of entries.
            width: D, the width of the vectors.
            decay: Decay of the moving averages per training step.
            revive_below: Usage below which an entry is dead and is replaced by a vector of the current batch.
        """
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codebook", torch.randn(vocabulary, width))
        self.register_buffer("usage", torch.ones(vocabulary))

    def encode(self, vectors: Tensor) -> Tensor:
        """Returns the indices (...) of the entries nearest to vectors (..., D)."""
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        # |v - e|^2 without |v|^2, which is the same for all entries; bf16 cannot distinguish near entries.
        with torch.autocast(flat.device.type, enabled=False):
            distance = self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        return distance.argmin(1).view(vectors.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the entries (..., D) at indices (...)."""
        return F.embedding(codes, self.codebook)

    @torch.no_grad()
    def initialize(self, vectors: Tensor, iterations: int = 20) -> None:
        """Sets the codebook by k-means over vectors (N, D), N >= 1; every rank gets the same codebook."""
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        vocabulary = self.codebook.shape[0]
        self.codebook.copy_(_sample_rows(flat, vocabulary))
        for _ in range(iterations):
            counts, sums = self._assignments(flat, self.encode(flat))
            means = sums / counts.clamp(min=1e-9)[:, None]
            self.codebook.copy_(torch.where((counts > 0)[:, None], means, _sample_rows(flat, vocabulary)))
        self.usage.fill_(1.0)

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Moves the entries towards the vectors (..., D) assigned to them, and replaces dead entries.

        N (the usage) and m = N x entry are moving averages, and entry = m / N (1711.00937, equations 6 to 8). The
        vectors of all ranks are used, so every rank gets the same entries. Non-finite vectors change nothing.
        """
        flat = vectors.reshape(-1, vectors.shape[-1]).float()
        counts, sums = self._assignments(flat, codes.reshape(-1))
        finite = sums.isfinite().all()
        mass = self.codebook * self.usage[:, None]
        usage = self.decay * self.usage + (1 - self.decay) * counts
        mass = self.decay * mass + (1 - self.decay) * sums
        moved = mass / usage.clamp(min=1e-6)[:, None]
        self.codebook.copy_(torch.where(finite & (usage > 1e-6)[:, None], moved, self.codebook))
        self.usage.copy_(torch.where(finite, usage, self.usage))
        self._revive(gather_over_ranks(flat), finite)

    def _revive(self, flat: Tensor, finite: Tensor) -> None:
        dead = finite & (self.usage < self.revive_below)
        self.codebook.copy_(torch.where(dead[:, None], _sample_rows(flat, len(dead)), self.codebook))
        self.usage.masked_fill_(dead, 1.0)

    def _assignments(self, flat: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Returns each entry's share (V,) of all ranks' vectors, of mean 1, and their sums (V, D) on that scale."""
        counts = torch.zeros_like(self.usage).index_add_(0, codes, torch.ones_like(flat[:, 0]))
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
        counts, sums = sum_over_ranks(counts), sum_over_ranks(sums)
        scale = len(counts) / counts.sum()
        return counts * scale, sums * scale


class ResidualQuantizer(nn.Module):
    """K codebooks, each quantising the residual of those before it."""

    def __init__(self, codebooks: int, vocabulary: int, width: int, decay: float = 0.99, dropout: float = 0.0) -> None:
        """
        Args:
            codebooks: K, the number of codebooks.
            vocabulary: V, the number of entries in each.
            width: D, the width of the vectors.
            decay: See `VectorQuantizer`.
            dropout: Probability, in training, that a batch item uses only its first k codebooks, k uniform in 1 .. K.
                It moves information into the first codes.
        """
        super().__init__()
        self.dropout = dropout
        if not 1 <= codebooks <= MAX_CODEBOOKS:
            raise ValueError(f"codebooks must be 1 to {MAX_CODEBOOKS}, got {codebooks}")
        self.levels = nn.ModuleList(VectorQuantizer(vocabulary, width, decay) for _ in range(codebooks))

    def encode(self, vectors: Tensor) -> Tensor:
        """Returns the codes (..., K) of vectors (..., D)."""
        residual, codes = vectors.float(), []
        for level in self._levels():
            codes.append(level.encode(residual))
            residual = residual - level.decode(codes[-1])
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the vectors (..., D) of codes (..., K), the sums of their entries."""
        return torch.stack([level.decode(codes[..., k]) for k, level in enumerate(self._levels())]).sum(0)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantises vectors (B, n, D); in training mode also updates the codebooks."""
        vectors = vectors.float()
        codebook_counts = self._codebook_counts(vectors)
        quantized, residual = torch.zeros_like(vectors), vectors
        codes, commitment = [], vectors.new_zeros(())
        for k, level in enumerate(self._levels()):
            codes.append(level.encode(residual.detach()))
            entries = level.decode(codes[-1])
            if self.training:
                level.update(residual.detach(), codes[-1])
            used = (k < codebook_counts)[:, None, None]
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

    def _codebook_counts(self, vectors: Tensor) -> Tensor:
        """Returns the number of codebooks that each batch item uses, (B,)."""
        count, batch = len(self.levels), vectors.shape[0]
        all_codebooks = torch.full((batch,), count, device=vectors.device)
        if not self.training or self.dropout == 0:
            return all_codebooks
        fewer = torch.randint(1, count + 1, (batch,), device=vectors.device)
        return torch.where(torch.rand(batch, device=vectors.device) < self.dropout, fewer, all_codebooks)

    def _levels(self) -> list[VectorQuantizer]:
        return list(self.levels)  # type: ignore[arg-type]


def code_use(codes: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Measures how much of each codebook is in use.

    Args:
        codes: Codes (..., K).
        vocabulary: V, the number of entries in each codebook.

    Returns:
        The number of entries that occur (K,), and the perplexity of their use (K,), the effective number in 1 .. V.
    """
    flat = codes.reshape(-1, codes.shape[-1])
    counts = torch.zeros(vocabulary, flat.shape[1], device=codes.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=counts.dtype))
    share = counts / flat.shape[0]
    return (counts > 0).sum(0), torch.exp(-torch.xlogy(share, share).sum(0))


def _sample_rows(flat: Tensor, count: int) -> Tensor:
    """Draws `count` rows of flat (N, D), each at most ceil(count / N) times; every rank gets the rows of rank 0."""
    order = torch.randperm(flat.shape[0], device=flat.device)
    rows = flat[order.repeat(-(-count // flat.shape[0]))[:count]].clone()
    copy_from_first_rank([rows])
    return rows
