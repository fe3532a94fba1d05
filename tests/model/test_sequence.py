"""Chunks of two people in the order of the clock."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vidchat.model.sequence import Columns, in_order

SAMPLES = st.integers(1, 3)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Columns, Columns]:
    """Said and heard columns of the same samples; each token's value is its number in its stream, heard below 0."""
    samples = draw(SAMPLES)
    return tuple(_columns(draw, samples, sign, draw(st.integers(1, 3))) for sign in (1.0, -1.0))  # type: ignore[return-value]


def _columns(draw: st.DrawFn, samples: int, sign: float, size: int) -> Columns:
    drawn = [sorted(draw(st.sets(st.integers(0, 9), max_size=5))) for _ in range(samples)]
    n = max(0 if sign > 0 else 1, *(len(steps) for steps in drawn))
    steps = (
        torch.tensor([[*own, *[draw(st.integers(0, 99))] * (n - len(own))] for own in drawn]).view(samples, n).long()
    )
    mask = torch.arange(n) < torch.tensor([[len(own)] for own in drawn])
    numbers = sign * (1 + torch.arange(samples * n * size).view(samples, n, size))
    visible = mask[..., None] & torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    return Columns(numbers[..., None], numbers[..., None].expand(-1, -1, -1, 3), steps, mask, visible)


def expected_order(said: Columns, heard: Columns, sample: int) -> list[tuple[int, float]]:
    """Step and value of each token, in the order of the clock: heard before said, columns whole."""
    chunks = [
        (int(stream.steps[sample, column]), person, stream.tokens[sample, column, :, 0].tolist())
        for person, stream in enumerate((heard, said))
        for column in range(stream.steps.shape[1])
        if stream.mask[sample, column]
    ]
    return [(step, value) for step, _, values in sorted(chunks, key=lambda chunk: chunk[:2]) for value in values]


@settings(deadline=None, derandomize=True, max_examples=150)
@given(streams())
def test_tokens_are_ordered_by_step_with_heard_before_said(both: tuple[Columns, Columns]) -> None:
    said, heard = both
    result = in_order(said, heard)
    values = result.tokens[..., 0]
    assert torch.equal(result.positions, values[..., None].expand(-1, -1, 3))
    assert (result.steps.diff(dim=1) >= 0).all()
    every = torch.cat([stream.tokens.flatten(1) for stream in both], dim=1)
    assert torch.equal(values.sort(1).values, every.sort(1).values), "each token once"
    sees = [dict(zip(s.tokens.flatten().tolist(), s.visible.flatten().tolist(), strict=True)) for s in both]
    for sample in range(len(values)):
        order = expected_order(said, heard, sample)
        assert list(zip(result.steps[sample].tolist(), values[sample].tolist(), strict=True))[: len(order)] == order
        assert all(step > order[-1][0] for step in result.steps[sample, len(order) :].tolist() if order)
        assert not result.visible[sample, len(order) :].any(), "padding"
        assert result.visible[sample].tolist() == [sees[v < 0][v] for v in values[sample].tolist()]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(streams())
def test_the_place_of_a_said_token_is_where_it_stands(both: tuple[Columns, Columns]) -> None:
    said, heard = both
    for result in (in_order(said, heard), *([in_order(said, None)] if said.steps.numel() else [])):
        places = result.said
        assert torch.equal(_at(result.tokens[..., 0], places), said.tokens[..., 0])
        steps = _at(result.steps, places)
        assert torch.equal(steps[said.mask], said.steps[said.mask][:, None].expand(-1, steps.shape[2]))


def _at(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(1, places.flatten(1)).view(places.shape)


def test_padding_is_no_part_of_any_step() -> None:
    """Whatever its steps say, no visible token sees it, as it follows the dialogue's last step."""
    tokens = torch.zeros(1, 3, 2, 1)
    mask = torch.tensor([[True, False, False]])
    visible = mask[..., None].expand(-1, -1, 2)
    said = Columns(tokens, tokens.expand(-1, -1, -1, 3), torch.tensor([[0, 0, 0]]), mask, visible)
    heard = Columns(tokens, tokens.expand(-1, -1, -1, 3), torch.tensor([[4, 0, 0]]), mask, visible)
    steps = in_order(said, heard).steps[0].tolist()
    assert steps[:4] == [0, 0, 4, 4]
    assert min(steps[4:]) > 4
