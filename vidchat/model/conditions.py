"""Conditions, and the turns that are heard, as tokens before the reference.

In training all of them are dropped together at random, since guidance extrapolates from a model that sees none, and
each also on its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.conditions.base import Condition, ConditionEmbedding, Conditioning
from vidchat.model.chunks import ChunkEmbedding, LatentShape, TokenShapes, chunk_positions, patchify

T = TypeVar("T")


@dataclass
class ConditionTokens:
    """The condition as the backbone reads it.

    Attributes:
        tokens: (B, P, D).
        visible: (B, P) bool, False for padding and dropped conditions.
        blocks: (P,) int64 on the CPU, nondecreasing: a token sees those of its own block and of earlier ones.
        positions: (B, P, 3).
        end: (B,) where the answer's own positions start.
    """

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor
    end: Tensor


@dataclass
class _Section:
    """Tokens (B, n, D) of one condition or of the turns, which are visible (B, n), their blocks (n,) on the CPU and
    positions (B, n, 3)."""

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor


class ConditionEncoder(nn.Module):
    """Turns the conditions of a batch, and what is heard, into tokens.

    Args:
        conditioning: The conditions, and whether the model hears.
        width: D.
        shapes: What the tokenizers give.

    Attributes:
        used: The conditions that the model reads, by name.
        embeddings: Their embeddings, by name.
    """

    def __init__(self, conditioning: Conditioning, width: int, shapes: TokenShapes) -> None:
        super().__init__()
        self.conditioning, self.hears = conditioning, conditioning.hears
        self._several = len(conditioning.conditions) + conditioning.hears > 1
        made = {name: condition.embedding(width, shapes) for name, condition in conditioning.conditions.items()}
        self.embeddings = nn.ModuleDict({name: module for name, module in made.items() if module is not None})

    @property
    def used(self) -> dict[str, Condition]:
        return {name: self.conditioning.conditions[name] for name in self.embeddings}

    def forward(
        self,
        batch: ChunkBatch,
        embed: ChunkEmbedding,
        latent: LatentShape,
        patch: int,
        keep: Tensor | None = None,
    ) -> ConditionTokens:
        """Encodes a batch's conditions.

        Args:
            batch: Its conditions; one that is switched on must be there.
            embed: The chunk embedding that the answer's own chunks use too.
            latent: Shape of a latent.
            patch: The backbone's visual patch.
            keep: (B,) bool, False hides all conditions of a sample (guidance). `None` draws drops in training and
                keeps everything in evaluation.
        """
        size, device = batch.size, batch.latents.device
        shown = self._shown(keep, size, device)
        sections, start = self._words(batch, embed, shown, torch.zeros(size, device=device))
        grid = batch.latents.shape[-2] // patch, batch.latents.shape[-1] // patch
        chunks = [*self._chunks(batch, embed), *self._turns(batch, embed, patch)]
        before = torch.zeros_like(start)  # chunks in front of a section
        for tokens, mask, audio_alone in chunks:
            count = mask.cumsum(1)
            places = chunk_positions(start, before[:, None] + count, grid, latent, embed.codec_frames)
            places = places[:, :, grid[0] * grid[1] :] if audio_alone else places
            sections.append(_section_of_chunks(tokens, mask & next(shown), places))
            before = before + count[:, -1]
        # The answer's chunk 0 comes one chunk after the last chunk of the condition.
        end = start + (before + 1) * latent.steps if chunks else start
        if not sections:
            sections = [_nothing(size, embed.role.embedding_dim, device)]
        offsets = itertools.accumulate((len(section.blocks) for section in sections), initial=0)
        return ConditionTokens(
            tokens=torch.cat([section.tokens for section in sections], dim=1),
            visible=torch.cat([section.visible for section in sections], dim=1),
            blocks=torch.cat([section.blocks + offset for section, offset in zip(sections, offsets, strict=False)]),
            positions=torch.cat([section.positions for section in sections], dim=1),
            end=end,
        )

    def _shown(self, keep: Tensor | None, size: int, device: torch.device) -> Iterator[Tensor]:
        """(B, 1) bool for one condition after another: which samples are shown it."""
        if keep is not None or not self.training:
            same = torch.ones(size, dtype=torch.bool, device=device) if keep is None else keep
            yield from itertools.repeat(same[:, None])
        drop = self.conditioning.drop
        together = torch.rand(size, 1, device=device) >= drop
        while True:
            alone = torch.rand(size, 1, device=device) >= drop if self._several else True
            yield together & alone

    def _given(self, batch: ChunkBatch, timed: bool) -> Iterator[tuple[ConditionEmbedding, ConditionValues]]:
        """Embedding and values of the conditions that are timed, or that are not."""
        for name, module in self.embeddings.items():
            assert isinstance(module, ConditionEmbedding)
            if module.timed == timed:
                yield module, _require(batch.conditions.get(name), f"conditions[{name!r}]")

    def _words(
        self, batch: ChunkBatch, embed: ChunkEmbedding, shown: Iterator[Tensor], start: Tensor
    ) -> tuple[list[_Section], Tensor]:
        """Conditions whose positions count token by token, and where they end (B,)."""
        sections = []
        for module, given in self._given(batch, timed=False):
            tokens = module(given.values, embed)
            if not tokens.shape[1]:
                continue
            count = given.mask.cumsum(1)
            places = (start[:, None] + (count - 1).clamp(min=0)).unsqueeze(-1).expand(-1, -1, 3)
            blocks = torch.arange(tokens.shape[1])
            sections.append(_Section(tokens, given.mask & next(shown), blocks, places))
            start = start + count[:, -1]
        return sections, start

    def _chunks(self, batch: ChunkBatch, embed: ChunkEmbedding) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Tokens (B, V, F, D) of the timed conditions, masks (B, V), and that they are audio alone."""
        for module, given in self._given(batch, timed=True):
            yield module(given.values, embed), given.mask, True

    def _turns(self, batch: ChunkBatch, embed: ChunkEmbedding, patch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Tokens (B, U, S + F, D) of what is heard, their mask (B, U), and that they are not audio alone."""
        if not self.hears:
            return
        latents, mask = _require(batch.turn_latents, "turn_latents"), _require(batch.turn_mask, "turn_mask")
        roles = _require(batch.turn_roles, "turn_roles")
        tokens = embed.embed_visual(patchify(latents, patch), roles)
        if embed.codec_frames:
            tokens = torch.cat([tokens, embed.embed_codes(_require(batch.turn_codes, "turn_codes"), roles)], dim=2)
        yield tokens, mask, False


def _section_of_chunks(tokens: Tensor, visible: Tensor, positions: Tensor) -> _Section:
    """Chunks (B, n, k, D) as a section: each is a block of k tokens."""
    count, per_chunk = tokens.shape[1:3]
    blocks = torch.arange(count).repeat_interleave(per_chunk)
    return _Section(tokens.flatten(1, 2), visible.repeat_interleave(per_chunk, dim=1), blocks, positions.flatten(1, 2))


def _nothing(size: int, width: int, device: torch.device) -> _Section:
    empty = torch.zeros(size, 0, device=device)
    tokens, places = (empty[..., None].expand(-1, -1, axes) for axes in (width, 3))
    return _Section(tokens, empty.bool(), torch.zeros(0, dtype=torch.long), places)


def _require(value: T | None, name: str) -> T:
    if value is None:
        told = "the model has a condition that the batch lacks"
        raise ValueError(f"{told}: ChunkBatch.{name} is missing; check condition=")
    return value
