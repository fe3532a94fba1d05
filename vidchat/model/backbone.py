"""The backbone: an LLM-style transformer, block-causal over chunks."""

from __future__ import annotations

import torch
from torch import Tensor


def block_causal_mask(blocks: Tensor, visible: Tensor) -> Tensor:
    """Who sees whom: every token sees the visible tokens of its own block and of all earlier blocks.

    With one token to a block this is a language model's causal mask; with a chunk to a block, next-chunk prediction.

    Args:
        blocks: (N,) int64, nondecreasing.
        visible: (B, N) bool, False for padding and dropped conditions.

    Returns:
        (B, 1, N, N) bool, True where a query (second to last axis) sees a key (last axis).
    """
    earlier = blocks[:, None] >= blocks[None, :]
    itself = torch.eye(len(blocks), dtype=torch.bool, device=blocks.device)  # a hidden token must see something
    return ((earlier & visible[:, None, :]) | itself)[:, None]
