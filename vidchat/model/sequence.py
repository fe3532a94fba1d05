"""Chunks in the order of the clock, as the backbone reads them in training and in generation alike.

A step is one block: first its heard tokens, then its said ones; a person without a chunk has no tokens there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Columns:
    """Tokens of one person's chunks, n of them with k tokens each.

    Attributes:
        tokens: (B, n, k, D) embeddings.
        positions: (B, n, k, 3) positions: time, row, column.
        steps: (B, n) int64, increasing where there is a chunk.
        mask: (B, n) bool, False for padding, which comes last.
        visible: (B, n, k) bool, False for tokens that are hidden or missing.
    """

    tokens: Tensor
    positions: Tensor
    steps: Tensor
    mask: Tensor
    visible: Tensor


@dataclass(frozen=True)
class StepTokens:
    """Tokens of N places in the order of the clock.

    Attributes:
        tokens: (B, N, D) embeddings.
        positions: (B, N, 3) positions: time, row, column.
        steps: (B, N) int64, nondecreasing.
        visible: (B, N) bool.
        said: (B, n, k) int64, the place of each token of the said columns.
    """

    tokens: Tensor
    positions: Tensor
    steps: Tensor
    visible: Tensor
    said: Tensor


def in_order(said: Columns, heard: Columns | None) -> StepTokens:
    """Returns the tokens of both people in the order of the clock."""
    streams = [said] if heard is None else [heard, said]
    sizes = [stream.tokens.shape[2] for stream in streams]
    steps = _with_padding(streams)
    places = _places(steps, sizes)
    tokens, positions, visible = (
        torch.cat([getattr(stream, name).flatten(1, 2) for stream in streams], dim=1)
        for name in ("tokens", "positions", "visible")
    )
    by_token = torch.cat([step.repeat_interleave(size, dim=1) for step, size in zip(steps, sizes, strict=True)], dim=1)
    said_places = places[-1].to(tokens.device)
    if heard is None:
        return StepTokens(tokens, positions, by_token, visible, said_places)
    place = torch.cat([some.flatten(1) for some in places], dim=1)
    source = torch.arange(place.shape[1], device=place.device).expand_as(place)
    source = torch.zeros_like(place).scatter(1, place, source)  # the inverse permutation
    by_token, source = by_token.gather(1, source), source.to(tokens.device)
    tokens, positions = (x.gather(1, source[..., None].expand_as(x)) for x in (tokens, positions))
    return StepTokens(tokens, positions, by_token, visible.gather(1, source), said_places)


def _places(steps: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Returns the place of every token, (B, n, k) for each stream of steps (B, n) and k tokens a column."""
    joined = torch.cat(steps, dim=1)
    counts = torch.cat([torch.full_like(step, size) for step, size in zip(steps, sizes, strict=True)], dim=1)
    order = joined.argsort(dim=1, stable=True)  # stable: what comes first in `steps` comes first in a step
    counts = counts.gather(1, order)
    first = torch.zeros_like(order).scatter(1, order, counts.cumsum(1) - counts)
    columns = first.split([step.shape[1] for step in steps], dim=1)
    return [some[..., None] + torch.arange(size, device=some.device) for some, size in zip(columns, sizes, strict=True)]


def _with_padding(streams: list[Columns]) -> list[Tensor]:
    """Returns the steps (B, n) of each stream; those of padding follow the dialogue's last step, one after another."""
    # Tensors on the meta device have no values; there, nothing is padding.
    masks = [
        torch.ones_like(stream.steps, dtype=torch.bool) if stream.mask.is_meta else stream.mask.to(stream.steps.device)
        for stream in streams
    ]
    known = [torch.where(mask, stream.steps, 0) for mask, stream in zip(masks, streams, strict=True)]
    last = torch.cat(known, dim=1).amax(1, keepdim=True)
    return [
        torch.where(mask, step, last + 1 + torch.arange(step.shape[1], device=last.device))
        for mask, step in zip(masks, known, strict=True)
    ]
