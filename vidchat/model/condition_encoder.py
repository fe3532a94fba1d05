"""Encodes conditions, and the turns that are heard, as tokens before the reference.

In training they are dropped at random: all together, since guidance extrapolates from a model without conditions, and
each on its own.
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
    """Tokens of the conditions and the turns, as the backbone reads them.

    Attributes:
        tokens: (B, P, D) embeddings.
        visible: (B, P) bool, False for padding and dropped conditions.
        blocks: (P,) int64 on the CPU, nondecreasing: a token sees its own block and earlier ones.
        positions: (B, P, 3) positions: time, row, column.
        end: (B,) position at which the answer starts.
    """

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor
    end: Tensor


@dataclass
class _Section:
    """Part of `ConditionTokens`: the tokens of one condition or of the turns."""

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor


class ConditionEncoder(nn.Module):
    """Encodes the conditions of a batch, and the turns that are heard, as tokens.

    Args:
        conditioning: The conditions, and whether the model hears turns.
        width: D.
        shapes: Shapes of the tokenizers' outputs.

    Attributes:
        used: Conditions that the model reads, by name.
        embeddings: Embeddings of these conditions, by name.
    """

    def __init__(self, conditioning: Conditioning, width: int, shapes: TokenShapes) -> None:
        super().__init__()
        self.conditioning, self.hears = conditioning, conditioning.hears
        self._drops_each = len(conditioning.conditions) + conditioning.hears > 1
        modules = {name: condition.embedding(width, shapes) for name, condition in conditioning.conditions.items()}
        self.embeddings = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

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
            batch: A batch with all conditions that the model reads.
            embed: Chunk embedding, shared with the answer's own chunks.
            latent: Shape of the latents.
            patch: The backbone's visual patch, in latents.
            keep: (B,) bool, False hides all conditions of a sample (guidance). `None` drops at random in training, and
                keeps all conditions in evaluation.
        """
        size, device = batch.size, batch.latents.device
        keeps = self._draw_keeps(keep, size, device)
        sections, start = self._untimed_sections(batch, embed, keeps, torch.zeros(size, device=device))
        grid = batch.latents.shape[-2] // patch, batch.latents.shape[-1] // patch
        timed = [*self._timed_conditions(batch, embed), *self._turns(batch, embed, patch)]
        before = torch.zeros_like(start)  # number of chunks before a section
        for tokens, mask, audio_only in timed:
            count = mask.cumsum(1)
            positions = chunk_positions(start, before[:, None] + count, grid, latent, embed.codec_frames)
            positions = positions[:, :, grid[0] * grid[1] :] if audio_only else positions
            sections.append(_chunk_section(tokens, mask & next(keeps), positions))
            before = before + count[:, -1]
        # Chunk 0 of the answer follows one chunk after the last chunk before it.
        end = start + (before + 1) * latent.steps if timed else start
        if not sections:
            sections = [_empty_section(size, embed.role.embedding_dim, device)]
        offsets = itertools.accumulate((len(section.blocks) for section in sections), initial=0)
        return ConditionTokens(
            tokens=torch.cat([section.tokens for section in sections], dim=1),
            visible=torch.cat([section.visible for section in sections], dim=1),
            blocks=torch.cat([section.blocks + offset for section, offset in zip(sections, offsets, strict=False)]),
            positions=torch.cat([section.positions for section in sections], dim=1),
            end=end,
        )

    def _draw_keeps(self, keep: Tensor | None, size: int, device: torch.device) -> Iterator[Tensor]:
        """Yields, for one condition after another, which samples keep it, (B, 1) bool."""
        if keep is not None or not self.training:
            keep = torch.ones(size, dtype=torch.bool, device=device) if keep is None else keep
            yield from itertools.repeat(keep[:, None])
        drop = self.conditioning.drop
        keep_any = torch.rand(size, 1, device=device) >= drop
        while True:
            keep_this = torch.rand(size, 1, device=device) >= drop if self._drops_each else True
            yield keep_any & keep_this

    def _values(self, batch: ChunkBatch, timed: bool) -> Iterator[tuple[ConditionEmbedding, ConditionValues]]:
        """Yields embedding and values of the conditions that are timed, or of those that are not."""
        for name, module in self.embeddings.items():
            assert isinstance(module, ConditionEmbedding)
            if module.timed == timed:
                yield module, _require(batch.conditions.get(name), f"conditions[{name!r}]")

    def _untimed_sections(
        self, batch: ChunkBatch, embed: ChunkEmbedding, keeps: Iterator[Tensor], start: Tensor
    ) -> tuple[list[_Section], Tensor]:
        """Returns the sections of conditions whose tokens take one position each, and the position after them, (B,)."""
        sections = []
        for module, condition in self._values(batch, timed=False):
            tokens = module(condition.values, embed)
            if not tokens.shape[1]:
                continue
            count = condition.mask.cumsum(1)
            positions = (start[:, None] + (count - 1).clamp(min=0)).unsqueeze(-1).expand(-1, -1, 3)
            blocks = torch.arange(tokens.shape[1])
            sections.append(_Section(tokens, condition.mask & next(keeps), blocks, positions))
            start = start + count[:, -1]
        return sections, start

    def _timed_conditions(self, batch: ChunkBatch, embed: ChunkEmbedding) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yields tokens (B, V, F, D) and mask (B, V) of the timed conditions, and True, as they are audio only."""
        for module, condition in self._values(batch, timed=True):
            yield module(condition.values, embed), condition.mask, True

    def _turns(self, batch: ChunkBatch, embed: ChunkEmbedding, patch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Yields tokens (B, U, S + F, D) and mask (B, U) of the turns, and False, as they are not audio only."""
        if not self.hears:
            return
        latents, mask = _require(batch.turn_latents, "turn_latents"), _require(batch.turn_mask, "turn_mask")
        roles = _require(batch.turn_roles, "turn_roles")
        tokens = embed.embed_visual(patchify(latents, patch), roles)
        if embed.codec_frames:
            tokens = torch.cat([tokens, embed.embed_codes(_require(batch.turn_codes, "turn_codes"), roles)], dim=2)
        yield tokens, mask, False


def _chunk_section(tokens: Tensor, visible: Tensor, positions: Tensor) -> _Section:
    """Returns the section of chunks (B, n, k, D), each of which is a block of k tokens."""
    count, per_chunk = tokens.shape[1:3]
    blocks = torch.arange(count).repeat_interleave(per_chunk)
    return _Section(tokens.flatten(1, 2), visible.repeat_interleave(per_chunk, dim=1), blocks, positions.flatten(1, 2))


def _empty_section(size: int, width: int, device: torch.device) -> _Section:
    empty = torch.zeros(size, 0, device=device)
    tokens, positions = (empty[..., None].expand(-1, -1, size) for size in (width, 3))
    return _Section(tokens, empty.bool(), torch.zeros(0, dtype=torch.long), positions)


def _require(value: T | None, name: str) -> T:
    if value is None:
        raise ValueError(f"the batch lacks a condition of the model: ChunkBatch.{name} is missing; check condition=")
    return value
