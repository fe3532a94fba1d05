"""Encodes conditions as tokens before the dialogue's clock starts.

In training, each condition and what is heard are dropped at random on their own, and all together, since guidance
extrapolates from a model without any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.conditions.base import Condition, ConditionEmbedding, Conditioning
from vidchat.model.chunks import ChunkEmbedding, TokenShapes, audio_positions

HEARD = "heard"  # the name of what is heard among the things that are dropped; no condition has it
Keeps = Mapping[str, Tensor]


@dataclass
class ConditionTokens:
    """Tokens of the conditions, as the backbone reads them.

    Attributes:
        tokens: (B, P, D) embeddings.
        visible: (B, P) bool, False for padding and dropped conditions.
        blocks: (P,) int64, nondecreasing: a token sees its own block and earlier ones.
        positions: (B, P, 3) positions: time, row, column.
        end: (B,) position of step 0, on all three axes.
    """

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor
    end: Tensor


@dataclass
class _Section:
    """Part of `ConditionTokens`: the tokens of one condition."""

    tokens: Tensor
    visible: Tensor
    blocks: Tensor
    positions: Tensor


class ConditionEncoder(nn.Module):
    """Encodes the conditions of a batch as tokens.

    Args:
        conditioning: The conditions, and whether the model hears the initiator.
        width: D.
        shapes: Shapes of the tokenizers' outputs.

    Attributes:
        used: Conditions that the model reads, by name.
        embeddings: Embeddings of these conditions, by name.
    """

    def __init__(self, conditioning: Conditioning, width: int, shapes: TokenShapes) -> None:
        super().__init__()
        self.conditioning, self.hears = conditioning, conditioning.hears
        self._width, self._steps = width, shapes.latent.steps
        modules = {name: condition.embedding(width, shapes) for name, condition in conditioning.conditions.items()}
        self.embeddings = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})

    @property
    def used(self) -> dict[str, Condition]:
        return {name: self.conditioning.conditions[name] for name in self.embeddings}

    def draw_keeps(self, size: int, device: torch.device) -> dict[str, Tensor]:
        """Draws for training which of B dialogues keep each condition, and what is heard, (B, 1) bool by name."""
        names = [*self.embeddings, *([HEARD] if self.hears else [])]
        drop = self.conditioning.drop
        keep_any = torch.rand(size, 1, device=device) >= drop
        if len(names) < 2:
            return dict.fromkeys(names, keep_any)
        return {name: keep_any & (torch.rand(size, 1, device=device) >= drop) for name in names}

    def keep_all(self, keep: Tensor) -> dict[str, Tensor]:
        """Returns keeps by which dialogues (B,) have all conditions and hear, or have none and do not."""
        return dict.fromkeys([*self.embeddings, *([HEARD] if self.hears else [])], keep[:, None])

    def forward(self, batch: ChunkBatch, embed: ChunkEmbedding, keeps: Keeps) -> ConditionTokens:
        """Encodes a batch's conditions.

        Args:
            batch: A batch with all conditions that the model reads.
            embed: Chunk embedding, shared with the chunks of the dialogue.
            keeps: For each condition, which dialogues keep it, (B, 1) bool.

        Raises:
            ValueError: The batch lacks a condition.
        """
        size, device = batch.size, batch.latents.device
        start = torch.zeros(size, device=device)  # position of the next token
        sections = [_empty_section(size, self._width, device)]
        for name, module, condition in self._values(batch, timed=False):
            count = condition.mask.cumsum(1)
            positions = (start[:, None] + (count - 1).clamp(min=0)).unsqueeze(-1).expand(-1, -1, 3)
            tokens = module(condition.values, embed)
            blocks = torch.arange(tokens.shape[1])
            sections.append(_Section(tokens, condition.mask & keeps[name], blocks, positions))
            start = start + count[:, -1] if tokens.shape[1] else start
        before = torch.zeros_like(start)  # chunks of timed conditions
        timed = False
        for name, module, condition in self._values(batch, timed=True):
            timed = True
            chunks = before[:, None] + condition.mask.cumsum(1)
            times = pad((chunks * self._steps)[..., None], (0, 2)) + start[:, None, None]
            positions = audio_positions(times, self._steps, embed.codec_frames)
            sections.append(_chunk_section(module(condition.values, embed), condition.mask & keeps[name], positions))
            before = before + condition.mask.sum(1)
        # Step 0 follows one chunk after the last chunk before it.
        end = start + (before + 1) * self._steps if timed else start
        offsets = itertools.accumulate((len(section.blocks) for section in sections), initial=0)
        return ConditionTokens(
            tokens=torch.cat([section.tokens for section in sections], dim=1),
            visible=torch.cat([section.visible for section in sections], dim=1),
            blocks=torch.cat([section.blocks + offset for section, offset in zip(sections, offsets, strict=False)]),
            positions=torch.cat([section.positions for section in sections], dim=1),
            end=end,
        )

    def _values(self, batch: ChunkBatch, timed: bool) -> Iterator[tuple[str, ConditionEmbedding, ConditionValues]]:
        """Yields name, embedding and values of the conditions that are timed, or of those that are not."""
        for name, module in self.embeddings.items():
            if cast(ConditionEmbedding, module).timed == timed:
                if name not in batch.conditions:
                    raise ValueError(f"the batch lacks a condition of the model: ChunkBatch.conditions[{name!r}]")
                yield name, cast(ConditionEmbedding, module), batch.conditions[name]


def _chunk_section(tokens: Tensor, visible: Tensor, positions: Tensor) -> _Section:
    """Returns the section of chunks (B, n, k, D), each of which is a block of k tokens."""
    count, per_chunk = tokens.shape[1:3]
    blocks = torch.arange(count).repeat_interleave(per_chunk)
    return _Section(tokens.flatten(1, 2), visible.repeat_interleave(per_chunk, dim=1), blocks, positions.flatten(1, 2))


def _empty_section(size: int, width: int, device: torch.device) -> _Section:
    empty = torch.zeros(size, 0, device=device)
    tokens, positions = (empty[..., None].expand(-1, -1, size) for size in (width, 3))
    return _Section(tokens, empty.bool(), torch.zeros(0, dtype=torch.long), positions)
