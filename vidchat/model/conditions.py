"""What the answer is conditioned on, any subset of it, as tokens before the reference.

Text (transcript or caption), quality scores, a frozen thinker's features, a sample of the responder's voice, and the
turns so far: the initiator's clip and, before it, earlier ones. Each is a switch. In training all of them are dropped
together at random, since guidance extrapolates from a model that sees none, and each also on its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidchat.batch import ChunkBatch
from vidchat.model.chunks import VOICE, ChunkEmbedding, LatentShape, chunk_positions, patchify
from vidchat.model.transformer import sinusoid


@dataclass(frozen=True)
class ConditionSwitches:
    """Which conditions a model has.

    Attributes:
        text: A transcript or caption.
        turns: The latents and codes of the initiator's clip and of earlier turns.
        voice: Codes of the responder's voice.
        scores: Number of quality scores.
        features: Width of a thinker's hidden states; 0 for none.
        drop: Probability in training with which all conditions of a sample are hidden together, and with which each
            of several is hidden on its own besides; a model with one condition hides it with this probability.
    """

    text: bool = False
    turns: bool = False
    voice: bool = False
    scores: int = 0
    features: int = 0
    drop: float = 0.1


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
    """One condition: tokens (B, n, D), present and visible (B, n), block of each token (n,) on the CPU."""

    tokens: Tensor
    present: Tensor
    visible: Tensor
    blocks: Tensor


class ConditionEncoder(nn.Module):
    """Turns the conditions of a batch into tokens.

    Args:
        switches: Which conditions there are.
        width: D.
        vocabulary: Of the text tokenizer.
    """

    def __init__(self, switches: ConditionSwitches, width: int, vocabulary: int) -> None:
        super().__init__()
        self.switches = switches
        kinds = switches.text, switches.turns, switches.voice, switches.scores, switches.features
        self._several = sum(map(bool, kinds)) > 1
        if switches.text:
            self.embed_tokens = nn.Embedding(vocabulary, width)
            nn.init.normal_(self.embed_tokens.weight, std=1.0)
        if switches.scores:
            self.score_names = nn.Embedding(switches.scores, width)
            self.score_values = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        if switches.features:
            self.project_features = nn.Linear(switches.features, width)

    def forward(
        self,
        batch: ChunkBatch,
        embed: ChunkEmbedding,
        latent: LatentShape,
        patch: int,
        keep: Tensor | None = None,
    ) -> ConditionTokens:
        """Encode a batch's conditions.

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
        words = [section for section in self._words(batch, shown) if section is not None]
        start = torch.zeros(size, device=device)
        positions = []
        for section in words:
            count = section.present.cumsum(1)
            positions.append((start[:, None] + (count - 1).clamp(min=0)).unsqueeze(-1).expand(-1, -1, 3))
            start = start + count[:, -1]
        sections = list(words)
        end = start
        for section, places, length in self._media(batch, embed, latent, patch, shown, start):
            positions.append(places)
            sections.append(section)
            end = length
        if not sections:
            empty = torch.zeros(size, 0, device=device)
            width = embed.role.embedding_dim
            blocks = torch.zeros(0, dtype=torch.long)
            return ConditionTokens(
                empty[..., None].expand(-1, -1, width), empty.bool(), blocks, empty[..., None].expand(-1, -1, 3), end
            )
        offset, blocks_list = 0, []
        for section in sections:
            blocks_list.append(section.blocks + offset)
            offset += int(section.blocks.shape[0])
        return ConditionTokens(
            tokens=torch.cat([section.tokens for section in sections], dim=1),
            visible=torch.cat([section.visible for section in sections], dim=1),
            blocks=torch.cat(blocks_list),
            positions=torch.cat(positions, dim=1),
            end=end,
        )

    def _shown(self, keep: Tensor | None, size: int, device: torch.device) -> Iterator[Tensor]:
        """(B, 1) bool for one condition after another: which samples are shown it."""
        if keep is not None or not self.training:
            same = torch.ones(size, dtype=torch.bool, device=device) if keep is None else keep
            yield from itertools.repeat(same[:, None])
        together = torch.rand(size, 1, device=device) >= self.switches.drop
        while True:
            alone = torch.rand(size, 1, device=device) >= self.switches.drop if self._several else True
            yield together & alone

    def _words(self, batch: ChunkBatch, shown: Iterator[Tensor]) -> list[_Section]:
        """Conditions that count positions token by token: text, scores, features."""
        sections = []
        if self.switches.text:
            ids, mask = _require(batch.text_ids, "text_ids"), _require(batch.text_mask, "text_mask")
            sections.append((self.embed_tokens(ids), mask))
        if self.switches.scores:
            values, mask = _require(batch.scores, "scores"), _require(batch.score_mask, "score_mask")
            sections.append((self.score_values(sinusoid(values * 100, 64)) + self.score_names.weight, mask))
        if self.switches.features:
            features, mask = _require(batch.features, "features"), _require(batch.feature_mask, "feature_mask")
            sections.append((self.project_features(features), mask))
        return [
            _Section(tokens, mask, mask & next(shown), torch.arange(tokens.shape[1]))
            for tokens, mask in sections
            if tokens.shape[1]
        ]

    def _media(
        self,
        batch: ChunkBatch,
        embed: ChunkEmbedding,
        latent: LatentShape,
        patch: int,
        shown: Iterator[Tensor],
        start: Tensor,
    ) -> list[tuple[_Section, Tensor, Tensor]]:
        """Conditions that count real time chunk by chunk: the voice, then the turns. With positions and their ends."""
        result = []
        rows, cols = (side // patch for side in batch.latents.shape[-2:])
        origin, before = start, torch.zeros_like(start)  # chunks before this section
        if self.switches.voice and embed.frames:
            codes, mask = _require(batch.voice_codes, "voice_codes"), _require(batch.voice_mask, "voice_mask")
            tokens = embed.embed_codes(codes, torch.full_like(mask, VOICE, dtype=torch.long))
            result.append((tokens, mask, 0))
        if self.switches.turns:
            latents, mask = _require(batch.turn_latents, "turn_latents"), _require(batch.turn_mask, "turn_mask")
            roles = _require(batch.turn_roles, "turn_roles")
            tokens = embed.embed_visual(patchify(latents, patch), roles)
            if embed.frames:
                tokens = torch.cat([tokens, embed.embed_codes(_require(batch.turn_codes, "turn_codes"), roles)], dim=2)
            result.append((tokens, mask, rows * cols))
        sections = []
        for tokens, mask, visual in result:
            count = mask.cumsum(1)
            index = before[:, None] + count
            places = chunk_positions(origin, index, (rows, cols), latent, embed.frames)[:, :, rows * cols - visual :]
            per_chunk = tokens.shape[2]
            visible = mask & next(shown)
            blocks = torch.arange(mask.shape[1]).repeat_interleave(per_chunk)
            section = _Section(
                tokens.flatten(1, 2),
                mask.repeat_interleave(per_chunk, dim=1),
                visible.repeat_interleave(per_chunk, dim=1),
                blocks,
            )
            before = before + count[:, -1]
            # The answer's chunk 0 comes one chunk after the last chunk of the condition.
            sections.append((section, places.flatten(1, 2), origin + (before + 1) * latent.steps))
        return sections


def _require(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise ValueError(f"the model has a condition that the batch lacks: ChunkBatch.{name} is None; check condition=")
    return value
