"""Batches of dialogues from tensors of their turns: the initiator's, if there is one, then the responder's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidchat.batch import UNKNOWN, ChunkBatch, ConditionValues


def answers(
    latents: Tensor,
    codes: Tensor | None = None,
    mask: Tensor | None = None,
    heard_latents: Tensor | None = None,
    heard_codes: Tensor | None = None,
    conditions: dict[str, ConditionValues] | None = None,
) -> ChunkBatch:
    """Returns a batch of B answers to initiators who speak for U chunks.

    Args:
        latents: (B, T+1, C, h, w) of the responder's clips, chunk 0 being the still.
        codes: (B, T, F, K) of chunks 1..T.
        mask: (B, T) bool, False for padding.
        heard_latents: (B, U, C, h, w); `None` if nothing is heard.
        heard_codes: (B, U, F, K).
        conditions: Conditions by name.
    """
    size, chunks, device = len(latents), latents.shape[1] - 1, latents.device
    heard = 0 if heard_latents is None else heard_latents.shape[1]
    first = 1 + bool(heard)  # columns before the first chunk: the reference, and the still beside the last chunk heard
    mask = torch.ones(size, chunks, dtype=torch.bool, device=device) if mask is None else mask
    steps = torch.cat([torch.tensor([0, heard][:first]), heard + 1 + torch.arange(chunks)])
    ends = torch.full((size, first + chunks), UNKNOWN)
    ends[:, first:] = 0
    batch = ChunkBatch(
        latents=torch.cat([latents[:, :1]] * (first - 1) + [latents], dim=1),
        steps=steps.expand(size, -1),
        stills=(torch.arange(first + chunks, device=device) < first).expand(size, -1),
        mask=pad(mask, (first, 0), value=True),
        codes=None if codes is None else pad(codes, (0, 0, 0, 0, first, 0)),
        ends=ends.to(device),
        conditions=conditions or {},
    )
    if heard:
        batch.heard_latents, batch.heard_codes = heard_latents, heard_codes
        batch.heard_steps = torch.arange(1, heard + 1).expand(size, -1)
        batch.heard_video = torch.ones(size, heard, dtype=torch.bool, device=device)
        batch.heard_audio = batch.heard_video if heard_codes is not None else ~batch.heard_video
    return batch
