"""A batch of dialogues as tensors: collated by `data`, read by `model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

INITIATOR, RESPONDER, VOICE = 0, 1, 2
"""Role of a chunk: part of a turn of the initiator or the responder, or of a sample of the responder's voice."""


@dataclass
class ConditionValues:
    """Values of one condition for B answers, or without the axis B for one answer.

    Attributes:
        values: (B, N, ...) up to N ids, numbers, vectors or chunks of codes.
        mask: (B, N) bool, True where there is a value.
    """

    values: Tensor
    mask: Tensor


@dataclass
class ChunkBatch:
    """B answers of up to T chunks each, with the turns and conditions before them.

    C, h, w are the channels and the grid of the latents, F the codec frames in a chunk, K the codebooks. Masks are True
    where there is data.

    Attributes:
        latents: (B, T+1, C, h, w) float, normalised; chunk 0 is the reference. At generation T may be 0.
        chunk_mask: (B, T) bool.
        codes: (B, T, F, K) int64, or `None` for a model without audio.
        turn_latents: (B, U, C, h, w), chunks of the turns that are heard: those of earlier turns, then the initiator's;
            all four `turn_*` are `None` for a model that hears nothing.
        turn_codes: (B, U, F, K) int64.
        turn_roles: (B, U) int64, `INITIATOR` or `RESPONDER`.
        turn_mask: (B, U) bool.
        conditions: Values of the conditions (`vidchat.conditions`), by name.
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
        """Returns a batch in which a function has been applied to every tensor."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        changed: dict[str, Any] = {name: function(value) for name, value in own.items()}
        conditions = {
            name: ConditionValues(function(condition.values), function(condition.mask))
            for name, condition in self.conditions.items()
        }
        return replace(self, **changed, conditions=conditions)

    def tensors(self) -> Iterator[Tensor]:
        """Yields every tensor of the batch."""
        yield from (value for value in vars(self).values() if isinstance(value, Tensor))
        for condition in self.conditions.values():
            yield from (condition.values, condition.mask)

    def to(self, device: torch.device | str) -> Self:
        """Returns the batch on another device; Lightning calls this."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Returns the batch in page-locked memory; the data loader calls this."""
        return self.map(lambda value: value.pin_memory())

    def first(self, count: int) -> Self:
        """Returns the first `count` answers of the batch."""
        return self.map(lambda value: value[:count])

    def repeat(self, times: int) -> Self:
        """Returns the batch repeated along B, for guidance and for several samples of one answer."""
        return self.map(lambda value: torch.cat([value] * times))


def pad(
    tensors: Sequence[Tensor], dtype: torch.dtype | None = None, empty: Callable[..., Tensor] = torch.empty
) -> tuple[Tensor, Tensor]:
    """Stacks tensors (n_i, ...) as (B, max n_i, ...), padded with zeros; the length is at least 1.

    Args:
        tensors: The B tensors.
        dtype: Type of the result, by default that of the tensors.
        empty: Allocator of the result, called like `torch.empty`.

    Returns:
        The result, and the mask (B, max n_i), False for padding.
    """
    lengths = [len(tensor) for tensor in tensors]
    longest = max(1, *lengths)
    padded = empty((len(tensors), longest, *tensors[0].shape[1:]), dtype=dtype or tensors[0].dtype)
    for row, tensor, length in zip(padded, tensors, lengths, strict=True):
        row[:length] = tensor
        row[length:] = 0
    return padded, torch.arange(longest)[None] < torch.tensor(lengths)[:, None]


def collate(
    samples: Sequence[ConditionValues], dtype: torch.dtype | None = None, empty: Callable[..., Tensor] = torch.empty
) -> ConditionValues:
    """Stacks the values of one condition for B answers as `pad` does; integers become int64."""
    values = [sample.values for sample in samples]
    dtype = dtype if values[0].is_floating_point() else torch.long
    return ConditionValues(pad(values, dtype, empty)[0], pad([sample.mask for sample in samples])[0])
