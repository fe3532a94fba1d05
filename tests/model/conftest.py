from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from vidchat.batch import ChunkBatch, ConditionValues, pad
from vidchat.conditions.base import Conditioning
from vidchat.conditions.node import read_conditions
from vidchat.layout import TurnSpan, lay_out
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.flow import FlowShape
from vidchat.model.generation_state import Chunk, GenerationState
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


def single(chunks: int, less: int = 0) -> list[list[TurnSpan]]:
    """Turns of two dialogues in which only the responder speaks, in the second for fewer chunks."""
    return [[TurnSpan("responder", chunks)], [TurnSpan("responder", chunks - less)]]


def read_said(
    model: Responder, state: GenerationState, batch: ChunkBatch, column: int, *noise: object
) -> GenerationState:
    """Reads a said chunk of a batch as the next step."""
    codes = None if batch.codes is None or model.depth is None else batch.codes[:, column]
    return model.read_step(state, Chunk(batch.latents[:, column], codes), None, *noise)


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
    """Builds two dialogues with every condition, the second shorter everywhere."""

    def make(chunks: int = 5, padded: bool = True, turns: Sequence[Sequence[TurnSpan]] | None = None) -> ChunkBatch:
        """Builds two dialogues of these turns: by default three heard chunks, then `chunks` said ones."""
        generator = torch.Generator().manual_seed(2)

        def floats(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator)

        def ids(high: int, *size: int) -> torch.Tensor:
            return torch.randint(high, size, generator=generator)

        def mask(length: int, count: int) -> torch.Tensor:
            return torch.arange(length) < torch.tensor([[length], [count if padded else length]])

        if turns is None:
            less = 1 if padded else 0
            turns = [
                [TurnSpan("initiator", 3), TurnSpan("responder", chunks)],
                [TurnSpan("initiator", 3 - less), TurnSpan("responder", chunks - 2 * less)],
            ]
        layouts = [lay_out(some) for some in turns]
        said, said_mask = pad([torch.tensor([place.step for place in layout.said]) for layout in layouts])
        stills, _ = pad([torch.tensor([place.chunk == 0 for place in layout.said]) for layout in layouts])
        heard, heard_mask = pad([torch.tensor([place.step for place in layout.heard]).long() for layout in layouts])
        n, u = said.shape[1], heard.shape[1]
        return ChunkBatch(
            latents=floats(2, n, 3, 4, 4),
            steps=said,
            stills=stills,
            mask=said_mask,
            codes=ids(16, 2, n, 4, 2),
            ends=ids(2, 2, n),
            heard_latents=floats(2, u, 3, 4, 4),
            heard_codes=ids(16, 2, u, 4, 2),
            heard_steps=heard,
            heard_video=heard_mask,
            heard_audio=heard_mask,
            conditions={
                "text": ConditionValues(ids(11, 2, 6), mask(6, 3)),
                "voice": ConditionValues(ids(16, 2, 2, 4, 2), mask(2, 1)),
                "scores": ConditionValues(floats(2, 2), mask(2, 1)),
                "features": ConditionValues(floats(2, 3, 5), mask(3, 2)),
            },
        )

    return make
