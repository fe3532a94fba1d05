"""How codes are drawn: the sampling law, and guidance step by step."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import CODES, shape
from vidchat.model.depth import CodeSampling, DepthTransformer, sample_code

PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


def frequencies(**sampling: float) -> torch.Tensor:
    settings = CodeSampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0} | sampling)
    return sample_code(PROBABILITIES.log().expand(40000, -1), settings).bincount(minlength=4) / 40000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_an_exponent(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(frequencies(temperature=temperature), expected / expected.sum(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 1}, [1]), ({"top_k": 3}, [0, 1, 3]), ({"top_k": 9}, [0, 1, 2, 3]), ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]), ({"top_p": 0.79}, [1, 3]), ({"top_p": 0.81}, [0, 1, 3]),
        ({"top_p": 0.01}, [1]),
    ],
)  # fmt: skip
def test_what_is_cut_off_and_how_the_rest_shares(cut, kept):
    """Top-p keeps the fewest of the likeliest codes that make up p, whatever their order, and always one."""
    expected = torch.zeros(4)
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    torch.testing.assert_close(frequencies(**cut), expected, atol=0.01, rtol=0)


def test_the_generator_decides(make_responder):
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden, sampling = torch.randn(3, 4, 8), CodeSampling(1.0, 0, 1.0)
    with torch.no_grad():
        first, again, other = (
            depth.sample(hidden, sampling, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_guided_codes_are_the_likeliest_of_the_mixed_logits():
    depth = DepthTransformer(shape(), 8, CODES).eval()
    conditioned, free = torch.randn(2, 3, 4, 8)
    with torch.no_grad():
        codes = depth.sample(torch.cat([conditioned, free]), CodeSampling(temperature=0), guidance=3.0)
        first, second = depth(conditioned, codes), depth(free, codes)
        assert torch.equal((second + 3.0 * (first - second)).argmax(-1), codes)
        assert not torch.equal(first.argmax(-1), codes)


def test_the_cross_entropy_is_taken_in_full_precision():
    """Of a model in half precision too: logits are rounded once, their logarithms and sums are not."""
    depth = DepthTransformer(shape(), 8, CODES).eval().bfloat16()
    hidden, codes, weight = torch.randn(3, 4, 8), torch.randint(16, (3, 4, 2)), torch.tensor([1.0, 1.0, 0.0])
    with torch.no_grad():
        entropy, _ = depth.loss(hidden.bfloat16(), codes, weight)
        logits = depth(hidden.bfloat16(), codes)
    assert logits.dtype == torch.bfloat16
    expected = -logits.float().log_softmax(-1).gather(-1, codes[..., None])[:2, ..., 0].mean((0, 1))
    torch.testing.assert_close(entropy, expected)
