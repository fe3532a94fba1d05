"""The state of generation between two steps, and the settings by which the next chunk is sampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, Self

from torch import Tensor

from vidchat.model.cache import KeyValueCache
from vidchat.model.depth import MAX_SCALE, CodeSampling, check_ranges, is_integer, is_number
from vidchat.registry import register

MAX_PAUSE = 100  # steps: 16 seconds
MAX_EVALUATIONS = 1000  # sets, or steps per set: more would take minutes per chunk and change nothing


@register("chunk_sampling")
@dataclass(frozen=True)
class ChunkSampling:
    """Sampling settings of a chunk; `configs/model` has those of each size.

    Attributes:
        sets: N in [1, `MAX_EVALUATIONS`], number of sets in which the visual tokens are filled in.
        flow_steps: Evaluations of the flow head per set, an even number in [2, `MAX_EVALUATIONS`]; a step takes two.
        temperature: Scale in [0, `MAX_SCALE`] of the flow head's initial noise.
        guidance: Scale in [0, `MAX_SCALE`] of classifier-free guidance on the conditions; 1 disables it.
        noise_level: Level in [0, 1) of the noise added to the model's own history; the model is given the level.
        codes: Sampling settings of the codes.
        pause: Number of steps in [0, `MAX_PAUSE`] between turns of a conversation: people take a moment, and a model
            answers best after the pauses that it was trained on.

    Raises:
        ValueError: A value is out of its range.
    """

    sets: int = 6
    flow_steps: int = 8
    temperature: float = 0.5
    guidance: float = 1.0
    noise_level: float = 0.1
    codes: CodeSampling = field(default_factory=CodeSampling)
    pause: int = 0

    def __post_init__(self) -> None:
        number, most = f"a number in [0, {MAX_SCALE}]", MAX_EVALUATIONS
        even = is_integer(self.flow_steps, 2, most) and self.flow_steps % 2 == 0
        check_ranges(
            "sampling",
            self,
            sets=(is_integer(self.sets, 1, most), f"a whole number in [1, {most}]"),
            flow_steps=(even, f"an even number in [2, {most}] (a midpoint step takes two evaluations)"),
            temperature=(is_number(self.temperature, 0, MAX_SCALE), number),
            guidance=(is_number(self.guidance, 0, MAX_SCALE), number),
            pause=(is_integer(self.pause, 0, MAX_PAUSE), f"a whole number in [0, {MAX_PAUSE}]"),
            noise_level=(is_number(self.noise_level, 0, 1) and self.noise_level < 1, "a number in [0, 1)"),
        )

    def changed(self, values: Mapping[str, Any]) -> Self:
        """Returns a copy with other values, those of `codes` under its name; `None` keeps a value.

        Raises:
            ValueError: A name is unknown, or a value is out of its range.
        """
        changes = {name: value for name, value in values.items() if value is not None}
        codes = {name: value for name, value in (changes.pop("codes", None) or {}).items() if value is not None}
        try:
            return replace(self, **changes, codes=replace(self.codes, **codes))
        except TypeError as error:
            known = [*(f.name for f in fields(self)), *(f"codes.{f.name}" for f in fields(self.codes))]
            raise ValueError(f"sampling has no such setting ({error}); its settings are {', '.join(known)}") from error


class Chunk(NamedTuple):
    """One person's chunk of B dialogues.

    Attributes:
        latents: (B, C, h, w); `None` if a heard chunk has no video.
        codes: (B, F, K); `None` for a still, and without audio.
        still: Whether it is a still: the responder's video before the first chunk of a turn.
    """

    latents: Tensor | None
    codes: Tensor | None = None
    still: bool = False


@dataclass(frozen=True)
class GenerationState:
    """State of the backbone after a step. B' is B, or 2B with guidance, conditional ones first.

    Attributes:
        cache: Keys and values of what was read; later states share it.
        origin: (B',) float64 position of step 0 in time, in rows and in columns.
        step: The last step read.
        grid: Rows and columns of the backbone's visual tokens.
        reference: (B, C, h, w) latents of step 0.
        hidden: (B', k, D) the backbone's outputs at the step's said chunk or still, which predict the next chunk;
            `None` if the step has neither.
        last: (B, C, h, w) latents of this chunk or still, with the noise they were read with.
        end: (B,) probability that this chunk is its turn's last; `None` for a still.
    """

    cache: KeyValueCache
    origin: Tensor
    step: int
    grid: tuple[int, int]
    reference: Tensor
    hidden: Tensor | None
    last: Tensor | None
    end: Tensor | None = None
