"""Where generation stands between two chunks, and how the next one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from torch import Tensor

from vidchat.model.cache import KeyValueCache
from vidchat.model.depth import MOST, CodeSampling, check_ranges, is_count, is_number
from vidchat.registry import register

MOST_EVALUATIONS = 1000  # of sets and of steps: more take minutes a chunk and change nothing


@register("chunk_sampling")
@dataclass(frozen=True)
class ChunkSampling:
    """How a chunk is drawn. The defaults are those of releases that say nothing (`configs/model` has newer ones').

    Attributes:
        sets: N in [1, `MOST_EVALUATIONS`], number of sets in which the visual tokens are filled in.
        flow_steps: Evaluations of the flow head per set, an even number in [2, `MOST_EVALUATIONS`]: a step takes two.
        temperature: Scale in [0, `MOST`] of the flow head's noise; a Gaussian's spread is scaled by it.
        guidance: Scale in [0, `MOST`] of classifier-free guidance on the condition; 1 is none.
        noise_level: Level in [0, 1) of the noise on the model's own history, which the model knows.
        codes: How codes are drawn.

    Raises:
        ValueError: a value is out of its range.
    """

    sets: int = 6
    flow_steps: int = 8
    temperature: float = 0.5
    guidance: float = 1.0
    noise_level: float = 0.1
    codes: CodeSampling = field(default_factory=CodeSampling)

    def __post_init__(self) -> None:
        number, most = f"a number in [0, {MOST}]", MOST_EVALUATIONS
        even = is_count(self.flow_steps, 2, most) and self.flow_steps % 2 == 0
        check_ranges(
            "sampling",
            self,
            sets=(is_count(self.sets, 1, most), f"a whole number in [1, {most}]"),
            flow_steps=(even, f"an even number in [2, {most}] (a midpoint step takes two evaluations)"),
            temperature=(is_number(self.temperature, 0, MOST), number),
            guidance=(is_number(self.guidance, 0, MOST), number),
            noise_level=(is_number(self.noise_level, 0, 1) and self.noise_level < 1, "a number in [0, 1)"),
        )

    def changed(self, values: Mapping[str, Any]) -> Self:
        """The same with other values, those under `codes` by name; `None` leaves a value as it is.

        Raises:
            ValueError: a name is unknown, or a value is out of its range.
        """
        given = {name: value for name, value in values.items() if value is not None}
        codes = {name: value for name, value in (given.pop("codes", None) or {}).items() if value is not None}
        try:
            return replace(self, **given, codes=replace(self.codes, **codes))
        except TypeError as error:
            known = [*(f.name for f in fields(self)), *(f"codes.{f.name}" for f in fields(self.codes))]
            raise ValueError(f"sampling has no such setting ({error}); there are {', '.join(known)}") from error


@dataclass
class GenerationState:
    """Where the backbone stands in an answer.

    Attributes:
        hidden: (B or 2B, N, D) its outputs at the last chunk read, which predict the next.
        cache: Keys and values of what it has read.
        places: (B or 2B, N, 3) positions of chunk 0; those of later chunks differ in time alone.
        chunk: Index of the last chunk read; 0 is the reference.
        grid: Rows and columns of the backbone's visual tokens.
        reference: (B, C, h, w) latents of chunk 0.
        last: (B, C, h, w) latents of the last chunk, with the noise that they were read with.
    """

    hidden: Tensor
    cache: KeyValueCache
    places: Tensor
    chunk: int
    grid: tuple[int, int]
    reference: Tensor
    last: Tensor
