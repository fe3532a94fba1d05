"""A batch of dialogues as tensors: collated by `data`, read by `model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

INITIATOR, RESPONDER, VOICE = 0, 1, 2
"""Role of a chunk: part of a turn of the initiator or the responder, or of a sample of the responder's voice."""
UNKNOWN = -1
"""Value of `ChunkBatch.ends` where it is not known whether a chunk is the last of its turn, and for stills."""


@dataclass
class ConditionValues:
    """Values of one condition for B dialogues, or without the axis B for one dialogue.

    Attributes:
        values: (B, N, ...) up to N ids, numbers, vectors or chunks of codes.
        mask: (B, N) bool, True where there is a value.
    """

    values: Tensor
    mask: Tensor


@dataclass
class ChunkBatch:
    """B dialogues, each on its clock (`vidchat.layout`), with their conditions.

    C, h, w are the channels and the grid of the latents, F the codec frames in a chunk, K the codebooks. A column is a
    chunk at a step: n of them are said, stills included, and u are heard. Columns are in order of their steps; padding
    comes last. Masks are True where there is data.

    Attributes:
        latents: (B, n, C, h, w) float, normalised: the responder's columns. Column 0 is the reference, at step 0.
        steps: (B, n) int64, step of each of these columns.
        stills: (B, n) bool, True for the reference and for the still before each further turn.
        mask: (B, n) bool.
        codes: (B, n, F, K) int64, those of stills being without meaning; `None` for a model without audio.
        ends: (B, n) int64: 1 for the last chunk of a turn, 0 for another chunk, `UNKNOWN` otherwise; `None` at
            generation.
        heard_latents: (B, u, C, h, w) the initiator's columns; `None` if no initiator is seen.
        heard_codes: (B, u, F, K) int64; `None` if no initiator is audible.
        heard_steps: (B, u) int64; `None` if nothing is heard.
        heard_video: (B, u) bool, whether a column has latents.
        heard_audio: (B, u) bool, whether a column has codes.
        conditions: Values of the conditions (`vidchat.conditions`), by name.
    """

    latents: Tensor
    steps: Tensor
    stills: Tensor
    mask: Tensor
    codes: Tensor | None = None
    ends: Tensor | None = None
    heard_latents: Tensor | None = None
    heard_codes: Tensor | None = None
    heard_steps: Tensor | None = None
    heard_video: Tensor | None = None
    heard_audio: Tensor | None = None
    conditions: dict[str, ConditionValues] = field(default_factory=dict)

    @classmethod
    def start(cls, reference: Tensor) -> Self:
        """Returns B dialogues of which nothing but the reference (B, C, h, w) is known."""
        still = torch.ones(reference.shape[0], 1, dtype=torch.bool, device=reference.device)
        return cls(reference[:, None], (~still).long(), still, still)

    @property
    def targets(self) -> Tensor:
        """(B, n-1) bool, True for each column 1..n-1 that is a chunk, which the column before it predicts."""
        return (self.mask & ~self.stills)[:, 1:]

    @property
    def size(self) -> int:
        """B, the number of dialogues."""
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
        """Returns the first `count` dialogues of the batch."""
        return self.map(lambda value: value[:count])

    def repeat(self, times: int) -> Self:
        """Returns the batch repeated along B, for guidance and for several samples of one dialogue."""
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
    """Stacks the values of one condition for B dialogues as `pad` does; integers become int64."""
    values = [sample.values for sample in samples]
    dtype = dtype if values[0].is_floating_point() else torch.long
    return ConditionValues(pad(values, dtype, empty)[0], pad([sample.mask for sample in samples])[0])
