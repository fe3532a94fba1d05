"""Running one token at a time, with joined operations, equals running the stack."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.conftest import shape
from vidchat.model.incremental import IncrementalTransformer
from vidchat.model.precision import to_bf16
from vidchat.model.transformer import Shape, Transformer


def a_stack(own: Shape) -> Transformer:
    torch.manual_seed(0)
    stack = Transformer(own).eval()
    for parameter in stack.parameters():  # norms' weights are all 1 at first
        parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    return stack


def one_by_one(stack: Transformer, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    single = IncrementalTransformer(stack, stack.angles(positions))
    return torch.stack([single.step(token) for token in x.unbind(1)], dim=1)


@pytest.mark.parametrize(
    "own", [shape(1), shape(3), replace(shape(), heads=3, kv_heads=3), replace(shape(), heads=4, kv_heads=2)]
)
def test_token_by_token_equals_the_stack(own):
    stack, x, positions = a_stack(own), torch.randn(3, 9, 16), torch.randint(50, (1, 9, 3)).float()
    with torch.no_grad():
        torch.testing.assert_close(
            one_by_one(stack, x, positions), stack(x, positions, causal=True), atol=1e-5, rtol=1e-5
        )


def test_under_autocast_products_are_in_half_precision_and_the_stream_is_not():
    stack, x, positions = a_stack(shape()), torch.randn(3, 9, 16), torch.arange(27.0).view(1, 9, 3)
    with torch.no_grad():
        full = stack(x, positions, causal=True)
        with torch.autocast("cpu", torch.bfloat16):
            expected, outputs = stack(x, positions, causal=True), one_by_one(stack, x, positions)
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, full)
    torch.testing.assert_close(outputs, expected, atol=3e-2, rtol=3e-2)


def test_in_bf16_it_equals_autocast():
    stack, x, positions = a_stack(shape()), torch.randn(3, 9, 16), torch.arange(27.0).view(1, 9, 3)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = one_by_one(stack, x, positions)
        to_bf16(stack)
        assert torch.equal(one_by_one(stack, x, positions), expected)
