"""Where generation stands between two chunks, and how the next one is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vidchat.model.cache import KeyValueCache
from vidchat.model.depth import CodeSampling


@dataclass(frozen=True)
class ChunkSampling:
    """How a chunk is drawn.

    Attributes:
        sets: N, sets in which the visual tokens are filled in.
        flow_steps: Steps of the flow head per set.
        temperature: Of the flow head's noise.
        guidance: Classifier-free guidance on the condition; 1 is none.
        noise_level: The level at which the model's own history is noised and that it is told.
        codes: How codes are drawn.
    """

    sets: int = 6
    flow_steps: int = 8
    temperature: float = 1.0
    guidance: float = 1.0
    noise_level: float = 0.0
    codes: CodeSampling = field(default_factory=CodeSampling)


@dataclass
class Reading:
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
