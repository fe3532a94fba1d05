from __future__ import annotations

import pytest
import torch

from vidchat.model.noise import NoiseInjection


def test_noise_keeps_the_variance_and_mixes_by_the_level():
    noise = NoiseInjection(16, 0.9)
    latents = torch.randn(4, 2, 3, 40, 40)
    levels = torch.tensor([[0.0, 0.3], [0.6, 0.9], [0.5, 0.1], [0.8, 0.2]])
    mixed = noise.mix(latents, levels)
    assert torch.equal(mixed[0, 0], latents[0, 0])
    assert mixed.flatten(2).std(-1).sub(1).abs().max() < 0.05
    correlation = (mixed * latents).flatten(2).mean(-1) / latents.flatten(2).square().mean(-1)
    torch.testing.assert_close(correlation, (1 - levels**2).sqrt(), atol=0.04, rtol=0)


def test_levels_are_drawn_for_every_chunk_up_to_the_largest():
    levels = NoiseInjection(16, 0.4).draw_levels(1000, 10, torch.device("cpu"))
    assert levels.min() >= 0
    assert levels.max() == pytest.approx(0.4, abs=1e-3)
    assert levels.mean() == pytest.approx(0.2, abs=0.01)
    assert levels.unique().numel() > 9000, "each chunk has its own"


def test_the_level_is_embedded_and_level_0_as_zero():
    noise = NoiseInjection(16, 0.4)
    embedded = noise.embed_levels(torch.tensor([[0.0, 0.1, 0.3]]))
    assert not embedded[0, 0].any()
    assert not torch.allclose(embedded[0, 1], embedded[0, 2], atol=1e-3)
