"""A batch of dialogues as tensors: what `data` collates and `model` reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

MOST_TEXT = 1000  # ids of a text that a model reads: as bytes, a minute of English


@dataclass
class ChunkBatch:
    """B answers of up to T chunks each, and what they answer.

    C, h, w are the video tokenizer's channels and latent grid; F codec frames in a chunk; K codebooks. Every mask is
    bool and True where there is something. A condition that is not used is `None`.

    Attributes:
        latents: (B, T+1, C, h, w) float, normalised; chunk 0 is the reference. At generation T may be 0.
        chunk_mask: (B, T) bool.
        codes: (B, T, F, K) int64, or `None` for a model without sound.
        text_ids: (B, L) int64, a transcript or caption; L is at most `MOST_TEXT`.
        text_mask: (B, L) bool.
        turn_latents: (B, U, C, h, w), the chunks of the initiator's clip, after those of earlier turns.
        turn_codes: (B, U, F, K) int64.
        turn_roles: (B, U) int64, 0 = initiator, 1 = responder.
        turn_mask: (B, U) bool.
        voice_codes: (B, V, F, K) int64, a sample of the responder's voice.
        voice_mask: (B, V) bool.
        scores: (B, N) float, standardised quality scores.
        score_mask: (B, N) bool, False where a score is unknown.
        features: (B, P, D) float, a frozen thinker's hidden states.
        feature_mask: (B, P) bool.
    """

    latents: Tensor
    chunk_mask: Tensor
    codes: Tensor | None = None
    text_ids: Tensor | None = None
    text_mask: Tensor | None = None
    turn_latents: Tensor | None = None
    turn_codes: Tensor | None = None
    turn_roles: Tensor | None = None
    turn_mask: Tensor | None = None
    voice_codes: Tensor | None = None
    voice_mask: Tensor | None = None
    scores: Tensor | None = None
    score_mask: Tensor | None = None
    features: Tensor | None = None
    feature_mask: Tensor | None = None

    @property
    def size(self) -> int:
        """B, the number of answers."""
        return self.latents.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if value is not None})

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device; Lightning calls this."""
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; the data loader calls this."""
        return self._map(lambda value: value.pin_memory())

    def first(self, count: int) -> Self:
        """The first `count` answers of the batch."""
        return self._map(lambda value: value[:count])

    def repeat(self, times: int) -> Self:
        """The batch repeated along B, for guidance and for several samples of one answer."""
        return self._map(lambda value: torch.cat([value] * times))
