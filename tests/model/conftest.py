from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.conditions.base import Conditioning
from vidchat.conditions.node import read_conditions
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.flow import FlowShape
from vidchat.model.responder import Responder
from vidchat.model.transformer import Shape

CODES = CodeShape(codec_frames=4, codebooks=2, vocabulary=16)
LATENT = LatentShape(channels=3, steps=4)


def shape(layers: int = 2) -> Shape:
    return Shape(width=16, layers=layers, heads=2, kv_heads=1, head_dim=8, mlp_width=32)


def conditioning(turns: bool = False, drop: float = 0.1, **chosen: object) -> Conditioning:
    """The conditions of a model, by name, and whether it hears turns."""
    return Conditioning(read_conditions(chosen), turns, drop)


def change(batch: ChunkBatch, name: str, below: int) -> None:
    """Changes every value of a condition, or of a field of a batch; integers stay below a limit."""
    condition = batch.conditions.get(name)
    value = getattr(batch, name) if condition is None else condition.values
    changed = (value + 1) % below if value.dtype == torch.long else value + 1
    setattr(condition or batch, "values" if condition else name, changed)


@pytest.fixture
def make_responder() -> Callable[..., Responder]:
    """Builds a small model; keyword arguments replace the defaults."""

    def make(**changes: object) -> Responder:
        torch.manual_seed(1)
        parts: dict = {
            "codes": CODES,
            "vocabulary": 11,
            "backbone": shape(),
            "flow": FlowShape(width=16, blocks=1),
            "spatial": shape(),
            "depth": shape(),
            "conditions": conditioning(turns=True, text=True, voice=True, scores=["dover", "motion"], features=5),
            "ratio": 2,
        } | changes
        tokens = TokenShapes(LATENT, parts.pop("codes"), parts.pop("vocabulary"))
        model = Responder(tokens, **parts)
        for parameter in model.parameters():  # a zero initialisation could hide an error
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    return make


@pytest.fixture
def make_batch() -> Callable[..., ChunkBatch]:
    """Builds two answers with every condition, the second padded everywhere."""

    def make(chunks: int = 5, padded: bool = True) -> ChunkBatch:
        generator = torch.Generator().manual_seed(2)

        def floats(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        def ids(high: int, *size: int) -> torch.Tensor:
            return torch.randint(high, size, generator=generator)

        def mask(length: int, count: int) -> torch.Tensor:
            return torch.arange(length) < torch.tensor([[length], [count if padded else length]])

        return ChunkBatch(
            latents=floats(2, chunks + 1, 3, 4, 4),
            chunk_mask=mask(chunks, chunks - 2),
            codes=ids(16, 2, chunks, 4, 2),
            turn_latents=floats(2, 3, 3, 4, 4),
            turn_codes=ids(16, 2, 3, 4, 2),
            turn_roles=torch.tensor([[1, 0, 0], [0, 0, 0]]),
            turn_mask=mask(3, 2),
            conditions={
                "text": ConditionValues(ids(11, 2, 6), mask(6, 3)),
                "voice": ConditionValues(ids(16, 2, 2, 4, 2), mask(2, 1)),
                "scores": ConditionValues(floats(2, 2), mask(2, 1)),
                "features": ConditionValues(floats(2, 3, 5), mask(3, 2)),
            },
        )

    return make
