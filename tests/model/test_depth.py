"""Sampling of codes: frequencies, cut-offs, and guidance step by step."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.model.conftest import CODES, shape
from vidchat.model.chunks import CodeShape
from vidchat.model.depth import CodeSampling, DepthTransformer, sample_code
from vidchat.model.graphs import CapturedLoops

PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


def frequencies(**sampling: float) -> torch.Tensor:
    settings = CodeSampling(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0} | sampling)
    exponential = torch.empty(40000, 4).exponential_()
    return sample_code(PROBABILITIES.log().expand(40000, -1), settings, exponential).bincount(minlength=4) / 40000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_is_an_exponent(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(frequencies(temperature=temperature), expected / expected.sum(), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("cut", "codes"),
    [
        ({"top_k": 1}, [1]), ({"top_k": 3}, [0, 1, 3]), ({"top_k": 9}, [0, 1, 2, 3]), ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]), ({"top_p": 0.79}, [1, 3]), ({"top_p": 0.81}, [0, 1, 3]),
        ({"top_p": 0.01}, [1]),
    ],
)  # fmt: skip
def test_cut_offs_keep_the_likeliest_codes_and_renormalise(cut, codes):
    """Top-p keeps the fewest of the likeliest codes that reach p, whatever their order, and at least one."""
    expected = torch.zeros(4)
    expected[codes] = PROBABILITIES[codes] / PROBABILITIES[codes].sum()
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


def plain_loop(depth, hidden, sampling, guidance, generator):
    """Draws code after code with torch.multinomial, each from a pass over all earlier codes."""
    count = len(hidden) if guidance == 1 else len(hidden) // 2
    codes = torch.zeros(count, CODES.codec_frames, CODES.codebooks, dtype=torch.long)
    for frame, book in product(range(CODES.codec_frames), range(CODES.codebooks)):
        halves = [depth(half, codes)[:, frame, book] for half in hidden.split(count)]
        logits = halves[0] if guidance == 1 else halves[1] + guidance * (halves[0] - halves[1])
        if sampling.temperature == 0:
            codes[:, frame, book] = logits.argmax(-1)
            continue
        rows = [cut(row, sampling) for row in (logits / sampling.temperature).softmax(-1)]
        codes[:, frame, book] = torch.multinomial(torch.stack(rows), 1, generator=generator)[:, 0]
    return codes


def cut(probabilities, sampling):
    order = probabilities.argsort(descending=True)[: sampling.top_k or None]
    share = probabilities[order] / probabilities[order].sum()
    kept = order[: int((share.cumsum(0) < sampling.top_p).sum()) + 1]
    return torch.zeros_like(probabilities).index_copy(0, kept, probabilities[kept])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(
    "sampling",
    [CodeSampling(0.0), CodeSampling(1.0, 0, 1.0), CodeSampling(0.8, 5, 1.0), CodeSampling(1.3, 0, 0.7),
     CodeSampling(1.0, 9, 0.8)],
)  # fmt: skip
def test_codes_and_seeds_are_those_of_the_plain_loop(sampling, guidance):
    """The random numbers, drawn before the loop, are those that torch.multinomial draws inside it on a CPU."""
    torch.manual_seed(0)
    depth = DepthTransformer(shape(), 8, CODES).eval()
    for parameter in depth.transformer.parameters():  # norms' weights are all 1 at first
        parameter.data.mul_(torch.rand_like(parameter) + 0.5)
    hidden = torch.randn(3 if guidance == 1 else 6, CODES.codec_frames, 8)
    with torch.no_grad():
        for seed in range(5):
            generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
            codes = depth.sample(hidden, sampling, guidance, generators[0], CapturedLoops())
            assert torch.equal(codes, plain_loop(depth, hidden, sampling, guidance, generators[1]))
            assert torch.equal(*(generator.get_state() for generator in generators))


def test_the_captured_loop_makes_no_random_draws():
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden, exponential = torch.randn(3, 4, 8), torch.empty(8, 3, 16).exponential_()
    before = torch.get_rng_state()
    with torch.no_grad():
        codes = depth.unroll(hidden, exponential, CodeSampling(), 1.0)
        assert torch.equal(depth.unroll(hidden.clone(), exponential.clone(), CodeSampling(), 1.0), codes)
    assert torch.equal(torch.get_rng_state(), before)


def test_pairs_of_codes_have_their_probabilities():
    """By the chi-square test at 0.1 %, fifteen degrees of freedom: p(a) p(b | a) over both codes of one codec frame."""
    torch.manual_seed(0)
    count, depth = 20000, DepthTransformer(shape(), 8, CodeShape(codec_frames=1, codebooks=2, vocabulary=4)).eval()
    hidden, pairs = torch.randn(1, 1, 8), torch.cartesian_prod(torch.arange(4), torch.arange(4))[:, None]
    with torch.no_grad():
        codes = depth.sample(hidden.expand(count, -1, -1), CodeSampling(0.8, 0, 1.0)).flatten(1)
        each = (depth(hidden.expand(16, -1, -1), pairs) / 0.8).softmax(-1).gather(-1, pairs[..., None])
    expected = count * each.flatten(1).prod(1)
    counts = (4 * codes[:, 0] + codes[:, 1]).bincount(minlength=16)
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 37.7


def test_greedy_guided_codes_maximise_the_guided_logits():
    depth = DepthTransformer(shape(), 8, CODES).eval()
    conditional, unconditional = torch.randn(2, 3, 4, 8)
    with torch.no_grad():
        codes = depth.sample(torch.cat([conditional, unconditional]), CodeSampling(temperature=0), guidance=3.0)
        first, second = depth(conditional, codes), depth(unconditional, codes)
        assert torch.equal((second + 3.0 * (first - second)).argmax(-1), codes)
        assert not torch.equal(first.argmax(-1), codes)


def test_the_cross_entropy_is_taken_in_full_precision():
    """Also for a model in half precision: logits are rounded once, their logarithms and sums are not."""
    depth = DepthTransformer(shape(), 8, CODES).eval().bfloat16()
    hidden, codes, weight = torch.randn(3, 4, 8), torch.randint(16, (3, 4, 2)), torch.tensor([1.0, 1.0, 0.0])
    with torch.no_grad():
        entropy, _ = depth.loss(hidden.bfloat16(), codes, weight)
        logits = depth(hidden.bfloat16(), codes)
    assert logits.dtype == torch.bfloat16
    expected = -logits.float().log_softmax(-1).gather(-1, codes[..., None])[:2, ..., 0].mean((0, 1))
    torch.testing.assert_close(entropy, expected)
