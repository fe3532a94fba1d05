"""A batch of dialogues as tensors: what `data` collates and `model` reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

INITIATOR, RESPONDER, VOICE = 0, 1, 2
"""Whose a chunk is: a turn of one of the two, or a sample of the responder's voice."""


@dataclass
class ConditionValues:
    """What one condition says of B answers; without B, of one.

    Attributes:
        values: (B, N, ...), up to N ids, numbers, vectors or chunks of codes.
        mask: (B, N) bool, True where there is one.
    """

    values: Tensor
    mask: Tensor


@dataclass
class ChunkBatch:
    """B answers of up to T chunks each, and what they answer.

    C, h, w are the video tokenizer's channels and latent grid; F codec frames in a chunk; K codebooks. Every mask is
    bool and True where there is something.

    Attributes:
        latents: (B, T+1, C, h, w) float, normalised; chunk 0 is the reference. At generation T may be 0.
        chunk_mask: (B, T) bool.
        codes: (B, T, F, K) int64, or `None` for a model without audio.
        turn_latents: (B, U, C, h, w), what is heard: the chunks of the initiator's clip, after those of earlier turns;
            `None`, as the other three, for a model that hears nothing.
        turn_codes: (B, U, F, K) int64.
        turn_roles: (B, U) int64, `INITIATOR` or `RESPONDER`.
        turn_mask: (B, U) bool.
        conditions: Values of each condition (`vidchat.conditions`) by its name.
    """

    latents: Tensor
    chunk_mask: Tensor
    codes: Tensor | None = None
    turn_latents: Tensor | None = None
    turn_codes: Tensor | None = None
    turn_roles: Tensor | None = None
    turn_mask: Tensor | None = None
    conditions: dict[str, ConditionValues] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """B, the number of answers."""
        return self.latents.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with each of its tensors replaced by a function of it."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "conditions"}
        conditions = {
            name: ConditionValues(function(given.values), function(given.mask))
            for name, given in self.conditions.items()
        }
        changed: dict[str, Any] = {name: function(value) for name, value in plain.items() if value is not None}
        return replace(self, **changed, conditions=conditions)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the batch."""
        yield from (value for value in vars(self).values() if isinstance(value, Tensor))
        for given in self.conditions.values():
            yield from (given.values, given.mask)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device; Lightning calls this."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; the data loader calls this."""
        return self.map(lambda value: value.pin_memory())

    def first(self, count: int) -> Self:
        """The first `count` answers of the batch."""
        return self.map(lambda value: value[:count])

    def repeat(self, times: int) -> Self:
        """The batch repeated along B, for guidance and for several samples of one answer."""
        return self.map(lambda value: torch.cat([value] * times))


def pad(
    parts: Sequence[Tensor], dtype: torch.dtype | None = None, empty: Callable[..., Tensor] = torch.empty
) -> tuple[Tensor, Tensor]:
    """Lays tensors (n_i, ...) side by side as (B, max n_i, ...), filled up with zeros.

    Nothing at all still takes one place, masked, so that no dimension is 0.

    Args:
        parts: The B tensors.
        dtype: Type of the result, by default that of the parts.
        empty: What makes the result's memory, as `torch.empty` does.

    Returns:
        The result and the mask (B, max n_i) of what is there.
    """
    longest = max(1, *(len(part) for part in parts))
    lengths = torch.tensor([len(part) for part in parts])
    padded = empty((len(parts), longest, *parts[0].shape[1:]), dtype=dtype or parts[0].dtype)
    for row, part in zip(padded, parts, strict=True):
        row[: len(part)] = part
        row[len(part) :] = 0
    return padded, torch.arange(longest)[None] < lengths[:, None]


def collate(
    parts: Sequence[ConditionValues], dtype: torch.dtype | None = None, empty: Callable[..., Tensor] = torch.empty
) -> ConditionValues:
    """Lays one condition's values of B answers side by side, see `pad`; whole numbers become int64."""
    values = [part.values for part in parts]
    dtype = dtype if values[0].is_floating_point() else torch.long
    return ConditionValues(pad(values, dtype, empty)[0], pad([part.mask for part in parts])[0])
