"""The flow head: its predictions, its noise, and its two samplers with a perfect prediction."""

from __future__ import annotations

import math

import pytest
import torch

from vidchat.model.flow import FlowHead, FlowShape, TokenDenoiser


def random_head(objective: str = "flow", draws: int = 1) -> FlowHead:
    """A head without zero initialisation, which could hide an error."""
    head = FlowHead(3, 4, FlowShape(width=16, blocks=2, draws=draws, objective=objective)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_adaptive_norms_start_as_plain_ones():
    """At initialisation the gates are zero, and neither time nor condition changes the prediction."""
    denoiser = TokenDenoiser(3, 4, FlowShape(width=16, blocks=2))
    assert not denoiser(torch.randn(5, 3), torch.rand(5), torch.randn(5, 4)).any()
    torch.nn.init.normal_(denoiser.output.weight)
    x = torch.randn(5, 3)
    expected = denoiser.output(torch.nn.functional.layer_norm(denoiser.token(x), (16,)))
    torch.testing.assert_close(denoiser(x, torch.rand(5), torch.randn(5, 4)), expected)


def test_time_and_condition_reach_the_prediction():
    denoiser, x, time, condition = random_head().denoiser, torch.randn(5, 3), torch.rand(5), torch.randn(5, 4)
    before = denoiser(x, time, condition)
    assert not torch.allclose(denoiser(x, (time + 0.3) % 1, condition), before, atol=1e-3)
    assert not torch.allclose(denoiser(x, time, condition + 1), before, atol=1e-3)


def test_half_precision_latents_meet_their_noise_in_full():
    head, target, condition = random_head(), torch.randn(50, 3).bfloat16(), torch.randn(50, 4)
    losses = []
    for each in (target, target.float()):
        torch.manual_seed(2)
        losses.append(head.loss(each, condition))
    assert torch.equal(*losses)


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_the_temperature_scales_the_first_noise(objective):
    head, condition = random_head(objective), torch.randn(6, 4)
    seen = []
    guided = head.denoiser.guided
    head.denoiser.guided = lambda x, *rest: seen.append(x) or guided(x, *rest)
    with torch.no_grad():
        for temperature in (1.0, 0.25):
            head.sample(condition, 4, temperature=temperature, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(seen[4], 0.25 * seen[0])


@pytest.mark.parametrize("objective", ["flow", "ddpm"])
def test_all_noise_comes_from_the_generator(objective):
    head, condition = random_head(objective), torch.randn(6, 4)
    with torch.no_grad():
        first, again, other = (
            head.sample(condition, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def cosine(time: torch.Tensor) -> torch.Tensor:
    """The share of signal in the variance (arXiv 2102.09672, equation 17) at times in [0, 1]."""
    angle = (time + 0.008) / 1.008 * math.pi / 2
    return angle.cos().square() / math.cos(0.008 / 1.008 * math.pi / 2) ** 2


class _GaussianNoise(torch.nn.Module):
    """E[e | x_t] for x ~ N(mean, std^2) on the cosine schedule: what a perfect DDPM head returns."""

    mean, std = 1.5, 0.5
    condition = torch.nn.Identity()

    def embed_times(self, times):
        return times[:, None]

    def modulate(self, time, condition):
        return [time.expand(*time.shape[:-2], len(condition), 1)]

    def guided(self, x, modulations, guidance):
        (time,) = modulations
        signal = cosine(time + 1 / 1000)  # step t of 1,000 is the state after t + 1 of them
        return (1 - signal).sqrt() * (x - signal.sqrt() * self.mean) / (signal * self.std**2 + 1 - signal)


@pytest.mark.parametrize("steps", [25, 100])
def test_ddpm_with_a_perfect_head_recovers_the_distribution(steps):
    head = FlowHead(2, 8, FlowShape(width=16, blocks=1, objective="ddpm"))
    head.denoiser = _GaussianNoise()
    drawn = head.sample(torch.zeros(20000, 8), steps)
    assert abs(drawn.mean().item() - 1.5) < 0.02
    assert abs(drawn.std().item() - 0.5) < 2.0 / steps + 0.01


def test_ddpm_trains_on_the_schedule_it_samples_with():
    """A head that returns E[e | x_t] of the cosine schedule has the smallest possible loss."""
    head = FlowHead(2, 8, FlowShape(width=16, blocks=1, objective="ddpm", draws=8))
    perfect = _GaussianNoise()

    class Perfect(torch.nn.Module):
        token = condition = torch.nn.Identity()

        def embed_times(self, times):
            return times[:, None]

        def modulate(self, time, condition):
            return [time]

        def predict(self, x, modulations):
            return perfect.guided(x, modulations, 1.0)

    head.denoiser = Perfect()
    target = perfect.mean + perfect.std * torch.randn(4000, 2)
    loss = head.loss(target, torch.zeros(4000, 8)).mean()
    signal = cosine((torch.arange(1000) + 1) / 1000)
    least = (signal * perfect.std**2 / (signal * perfect.std**2 + 1 - signal)).mean()
    assert loss.item() == pytest.approx(least.item(), rel=0.02)


def test_sampling_does_not_change_training():
    """The tables of DDPM's scheduler change with the number of steps; training and sampling share none."""
    head, target, condition = random_head("ddpm"), torch.randn(50, 3), torch.randn(50, 4)
    losses = []
    for steps in (None, 7):
        if steps:
            head.sample(condition, steps)
        torch.manual_seed(2)
        losses.append(head.loss(target, condition))
    assert torch.equal(*losses)
