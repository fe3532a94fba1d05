"""What training minimises.

L = w_v * flow loss over predicted tokens + w_a * cross-entropy over codes + w_e * cross-entropy of the turns' ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vidchat.registry import register


@register("objective")
@dataclass(frozen=True)
class Objective:
    """Weights of the losses, and the chunks that they are computed on; generation does not use it.

    Attributes:
        video: w_v, weight of the flow loss.
        audio: w_a, weight of the cross-entropy.
        end: w_e, weight of the cross-entropy of the turns' ends.
        first_codebook: Weight of the first codebook in the cross-entropy, relative to the others: it carries the words,
            they carry the sound quality (moshi's fine-tuning uses 100).
        spatial_chunks: Number of chunks of a batch, drawn at random, on which the spatial transformer and the flow head
            train in one step; `None` means all. The backbone and the depth transformer always train on all.
        code_dropout: Largest share of chunks of the responder's history whose codes are hidden from the backbone.
        resample: Probability of a step in which the chunks before those that are trained on are the model's own: partly
            noised and denoised again, without a gradient (Resampling Forcing, arXiv 2512.15702). It then learns to
            continue what it will see in generation.
    """

    video: float = 1.0
    audio: float = 1.0
    end: float = 0.5
    first_codebook: float = 1.0
    spatial_chunks: int | None = None
    code_dropout: float = 0.0
    resample: float = 0.0

    def draw_chunks(self, weight: Tensor) -> Tensor | None:
        """Draws the indices (m,) of the chunks whose video is trained on; `None` means all.

        Args:
            weight: (N,) 1 for a chunk, 0 for padding, which is drawn last.
        """
        count = self.spatial_chunks
        if not count or count >= len(weight):
            return None
        return (torch.rand_like(weight) + weight).topk(count).indices

    def total(self, video: Tensor, entropy: Tensor | None, end: Tensor) -> Tensor:
        """Returns the loss to minimise, a scalar.

        Args:
            video: Flow loss, a scalar.
            entropy: (K,) cross-entropy of each codebook in nats; `None` for a model without audio.
            end: Cross-entropy of the turns' ends in nats per chunk, a scalar.
        """
        loss = self.video * video + self.end * end
        if entropy is None:
            return loss
        first = self.first_codebook
        return loss + self.audio * ((first * entropy[0] + entropy[1:].sum()) / (first + len(entropy) - 1))
