from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from tests.model.conftest import CODES, shape
from vidchat.model.cache import Cache, KeyValueCache
from vidchat.model.depth import CodeSampling, DepthTransformer, sample_code
from vidchat.model.flow import FlowHead, FlowShape
from vidchat.model.mask import BlockCausal
from vidchat.model.norm import RMSNorm
from vidchat.model.rotary import rotary_angles, rotate
from vidchat.model.transformer import Shape, Transformer


def test_on_pure_text_the_backbone_is_qwen3():
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    theirs = Qwen3Model(config).eval()
    theta = config.rope_parameters["rope_theta"]
    ours = Transformer(Shape(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=64, theta=theta)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = theirs.state_dict()
    embed = weights.pop("embed_tokens.weight")
    ours.load_state_dict(weights)
    ids = torch.randint(50, (2, 9))
    positions = torch.arange(9).float()[None, :, None].expand(2, -1, 3)
    mask = BlockCausal(torch.arange(9)[None], torch.ones(2, 9, dtype=torch.bool))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        torch.testing.assert_close(ours(embed[ids], positions, mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(embed[ids], positions, causal=True), expected, atol=1e-5, rtol=1e-5)


def test_depth_sampling_follows_its_own_logits():
    """Greedy sampling, cached step by step, picks what the teacher-forced pass finds most likely."""
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden = torch.randn(3, 4, 8)
    with torch.no_grad():
        codes = depth.sample(hidden, CodeSampling(temperature=0))
        assert torch.equal(depth(hidden, codes).argmax(-1), codes)
        torch.testing.assert_close(depth.sample(hidden.repeat(2, 1, 1), CodeSampling(temperature=0), 2.0), codes)


def test_depth_is_causal_in_codes():
    depth = DepthTransformer(shape(), 8, CODES).eval()
    hidden, codes = torch.randn(1, 4, 8), torch.randint(16, (1, 4, 2))
    before = depth(hidden, codes)
    codes[0, 2, 1] = (codes[0, 2, 1] + 1) % 16
    after = depth(hidden, codes)
    assert torch.equal(before.flatten(1, 2)[:, :6], after.flatten(1, 2)[:, :6])
    assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [(CodeSampling(1.0, 2, 1.0), {0, 1}), (CodeSampling(1.0, 0, 0.6), {0, 1}), (CodeSampling(0.0), {0})],
)
def test_code_sampling_cuts_off(sampling, allowed):
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    drawn = sample_code(probabilities.log().expand(4000, -1), sampling, torch.empty(4000, 4).exponential_())
    assert set(drawn.tolist()) == allowed


def test_code_sampling_has_the_right_frequencies():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    exponential = torch.empty(40000, 4).exponential_()
    drawn = sample_code(probabilities.log().expand(40000, -1), CodeSampling(1.0, 0, 1.0), exponential)
    torch.testing.assert_close(drawn.bincount(minlength=4) / 40000, probabilities, atol=0.01, rtol=0)


def test_flow_loss_starts_at_its_known_value():
    """A zero-initialised head predicts 0, so the flow loss is var(e - x) = 2 and the DDPM loss is var(e) = 1."""
    target, condition = torch.randn(4000, 4), torch.randn(4000, 8)
    for objective, expected in (("flow", 2.0), ("ddpm", 1.0)):
        head = FlowHead(4, 8, FlowShape(width=16, blocks=1, objective=objective))
        loss = head.loss(target, condition).mean()
        assert abs(loss.item() - expected) < 0.05
        assert loss.dtype == torch.float32


class _KnownVelocity(torch.nn.Module):
    """E[e - x | x_s] for x drawn from a mixture of Gaussians: what a perfect flow head returns."""

    condition = torch.nn.Identity()

    def __init__(self, *mixture: tuple[float, float, float]) -> None:
        """Takes the share, the mean and the standard deviation of each Gaussian."""
        super().__init__()
        self.share, self.mean, self.std = torch.tensor(mixture).T

    def spread(self) -> float:
        mean = (self.share * self.mean).sum()
        return float((self.share * (self.std**2 + (self.mean - mean) ** 2)).sum().sqrt())

    def embed_times(self, times):
        return times[:, None]

    def modulate(self, time, condition):
        return [time.expand(len(time), len(condition), 1)]

    def guided(self, x, modulations, guidance):
        s = modulations[0].unsqueeze(-1)
        off, variance = x.unsqueeze(-1) - (1 - s) * self.mean, ((1 - s) * self.std) ** 2 + s**2
        weights = (self.share.log() - variance.log() / 2 - off**2 / (2 * variance)).softmax(-1)
        velocity = (s - (1 - s) * self.std**2) / variance * off - self.mean
        return (weights * velocity).sum(-1)


ONE, NARROW, WIDE = [(1.0, 1.5, 0.5)], [(1.0, -1.0, 0.2)], [(1.0, 0.0, 1.0)]
TWO, THREE = [(0.3, -1.0, 0.15), (0.7, 1.0, 0.3)], [(0.2, -1.5, 0.05), (0.3, 0.0, 0.1), (0.5, 1.2, 0.2)]


@pytest.mark.parametrize("mixture", [ONE, NARROW, WIDE, TWO, THREE], ids=["one", "narrow", "wide", "two", "three"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_eight_evaluations_of_a_perfect_head_recover_the_distribution(mixture, temperature):
    """Mean and standard deviation are recovered; for one Gaussian, temperature scales the standard deviation."""
    head = FlowHead(2, 8, FlowShape(width=16, blocks=1))
    head.denoiser = _KnownVelocity(*mixture)
    drawn, exact = (
        head.sample(torch.zeros(4000, 8), steps, 1.0, temperature, torch.Generator().manual_seed(0))
        for steps in (8, 100)
    )
    if len(mixture) == 1 or temperature == 1:
        assert exact.std().item() == pytest.approx(temperature * head.denoiser.spread(), rel=0.03)
    assert drawn.std().item() == pytest.approx(exact.std().item(), rel=0.025)
    assert drawn.mean().item() == pytest.approx(exact.mean().item(), abs=0.03)


def test_the_number_of_evaluations_is_exact_and_an_odd_one_is_refused():
    head, calls = FlowHead(2, 8, FlowShape(width=16, blocks=1)), []
    head.denoiser = _KnownVelocity(*ONE)
    guided = head.denoiser.guided
    head.denoiser.guided = lambda *inputs: calls.append(inputs) or guided(*inputs)
    head.sample(torch.zeros(3, 8), 6)
    assert len(calls) == 6
    with pytest.raises(ValueError, match="flow_steps=7 is not possible"):
        head.sample(torch.zeros(3, 8), 7)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_head_learns_a_known_distribution(objective):
    """Two conditions, two Gaussians: after some training, samples have their means and standard deviations."""
    head = FlowHead(2, 2, FlowShape(width=64, blocks=2, objective=objective))
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    means, spread = torch.tensor([[1.0, -1.0], [-1.0, 0.5]]), 0.3
    for _ in range(400):
        which = torch.randint(2, (256,))
        target = means[which] + spread * torch.randn(256, 2)
        loss = head.loss(target, torch.eye(2)[which]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for which in range(2):
            drawn = head.sample(torch.eye(2)[which].expand(2000, -1), 50)
            torch.testing.assert_close(drawn.mean(0), means[which], atol=0.12, rtol=0)
            torch.testing.assert_close(drawn.std(0), torch.full((2,), spread), atol=0.12, rtol=0)


def test_repeated_draws_are_the_mean_of_single_ones():
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=4))
    torch.nn.init.normal_(head.denoiser.output.weight)
    target, condition = torch.randn(6, 3), torch.randn(6, 4)
    torch.manual_seed(5)
    together = head.loss(target, condition)
    single = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=1))
    single.load_state_dict(head.state_dict())
    torch.manual_seed(5)
    apart = single.loss(target.repeat(4, 1), condition.repeat(4, 1)).view(4, 6).mean(0)
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize("noises", [1, 3])
def test_draws_that_share_computation_equal_single_draws(noises):
    """Embedded times (from a table if there are more than 1,000) and modulations are shared; the loss is the same."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1, draws=2 * noises, noises=noises))
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    target, condition = torch.randn(600, 3), torch.randn(600, 4)
    torch.manual_seed(5)
    loss = head.loss(target, condition)
    gradient = torch.autograd.grad(loss.sum(), head.denoiser.time[0].weight)[0]
    torch.manual_seed(5)
    noise = torch.randn(noises * 1200, 3)
    time = ((torch.randn(1200).sigmoid() * 1000).long() + 0.5).repeat(noises) / 1000
    every = target.repeat(2 * noises, 1)
    mixed = (1 - time[:, None]) * every + time[:, None] * noise
    error = head.denoiser(mixed, time, condition.repeat(2 * noises, 1)) - (noise - every)
    expected = error.square().mean(-1).view(2 * noises, -1).mean(0)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-3)
    by_hand = torch.autograd.grad(expected.sum(), head.denoiser.time[0].weight)[0]
    torch.testing.assert_close(gradient, by_hand, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_noises_that_share_a_time_keep_the_mean_loss(objective):
    """Only the standard deviation over tokens grows."""
    target, condition, losses = torch.randn(20000, 3), torch.zeros(20000, 4), []
    for noises in (1, 4):
        torch.manual_seed(7)
        head = FlowHead(3, 4, FlowShape(width=16, blocks=1, noises=noises, objective=objective))
        torch.nn.init.normal_(head.denoiser.output.weight)
        torch.nn.init.normal_(head.denoiser.modulation.weight)
        with torch.no_grad():
            losses.append(head.loss(target, condition))
    apart, shared = losses
    torch.testing.assert_close(shared.mean(), apart.mean(), rtol=0.02, atol=0)
    assert shared.std() > apart.std()


def test_noises_that_do_not_divide_the_draws_are_refused():
    with pytest.raises(ValueError, match=r"noises \(3\) must divide draws \(4\)"):
        FlowShape(width=16, blocks=1, noises=3)


def test_guidance_halves_share_the_noise():
    head = FlowHead(3, 4, FlowShape(width=16, blocks=1))
    torch.nn.init.normal_(head.denoiser.output.weight)
    condition = torch.randn(5, 4)
    with torch.no_grad():
        plain = head.sample(condition, 4, generator=torch.Generator().manual_seed(1))
        both = head.sample(condition.repeat(2, 1), 4, 3.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain, both, msg="with equal halves, guidance of any scale changes nothing")


def test_a_cache_refuses_unexpected_numbers_of_tokens():
    cache = KeyValueCache(1, torch.ones(1, 3, dtype=torch.bool), heard=2, said=2, window=1, undo=0)
    with pytest.raises(ValueError, match="room for 3 tokens, not for 2"):
        cache.write(0, torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))
    cache.write(0, torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8))
    cache.open_step(1, torch.ones(1, 1, dtype=torch.bool), said=True)
    with pytest.raises(ValueError, match="room for 3 tokens, not for 4"):
        cache.write(0, torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8))
    small = Cache(1, capacity=3)
    small.write(0, torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))
    small.advance(2)
    with pytest.raises(ValueError, match="room for 3 tokens, not for 4"):
        small.write(0, torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))


def test_the_norm_and_its_gradients_equal_those_of_torch():
    """Against finite differences in float64, and against `nn.RMSNorm` in float32."""
    norm = RMSNorm(8, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    assert torch.autograd.gradcheck(norm.double(), torch.randn(2, 3, 8, dtype=torch.double, requires_grad=True))
    theirs = torch.nn.RMSNorm(8, eps=1e-6)
    theirs.load_state_dict(norm.float().state_dict())
    results = []
    for each in (norm, theirs):
        x = torch.linspace(-3, 3, 40).view(5, 8).requires_grad_()
        y = each(x)
        (y * torch.linspace(1, 2, 8)).sum().backward()
        results.append((y, x.grad, each.weight.grad))
    for ours, other in zip(*results, strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert torch.equal(norm(torch.zeros(1, 8, requires_grad=True)), torch.zeros(1, 8)), "no NaN for an input of zeros"


def test_rotation_in_half_precision_keeps_it():
    angles = rotary_angles(torch.rand(2, 5, 3), 8, 100.0)
    x = torch.randn(2, 3, 5, 8)
    assert rotate(x.bfloat16(), angles).dtype == torch.bfloat16
    torch.testing.assert_close(rotate(x.bfloat16(), angles).float(), rotate(x, angles), atol=3e-2, rtol=3e-2)
