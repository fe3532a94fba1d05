"""What training minimises: L = w_v * flow loss over predicted tokens + w_a * cross-entropy over codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.registry import register


@register("objective")
@dataclass(frozen=True)
class Objective:
    """How the losses are weighed, and on what; generation does not read it.

    Attributes:
        video: w_v.
        audio: w_a.
        first_codebook: How many times the first codebook counts in the cross-entropy, the others once: it says what is
            said, they say how it sounds (moshi's fine-tuning counts its first 100 times).
        spatial_chunks: Chunks of a batch, drawn at random, that the spatial transformer and the flow head train on in
            one step; `None` is all. The backbone and the depth transformer always train on all.
        code_dropout: Of an answer's own history, the largest share of chunks whose codes are hidden.
    """

    video: float = 1.0
    audio: float = 1.0
    first_codebook: float = 1.0
    spatial_chunks: int | None = None
    code_dropout: float = 0.0

    def draw_chunks(self, weight: Tensor) -> Tensor | None:
        """Indices of the chunks whose frames are trained on; `None` is all.

        Args:
            weight: (N,) 1 for a chunk, 0 for padding, which is drawn last.
        """
        kept = self.spatial_chunks
        if not kept or kept >= len(weight):
            return None
        return (torch.rand_like(weight) + weight).topk(kept).indices

    def total(self, video: Tensor, entropy: Tensor | None) -> Tensor:
        """What is minimised.

        Args:
            video: The flow loss.
            entropy: (K,) cross-entropy of each codebook in nats; `None` for a model without audio.
        """
        loss = self.video * video
        if entropy is None:
            return loss
        first = self.first_codebook
        return loss + self.audio * ((first * entropy[0] + entropy[1:].sum()) / (first + len(entropy) - 1))
