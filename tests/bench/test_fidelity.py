from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from vidchat.bench.fidelity import Fidelity, structural_similarity
from vidchat.data.media import Media


def media(pictures):
    return Media(pictures, torch.zeros(len(pictures) * 640), 25, 16000)


@pytest.mark.parametrize("size", [(32, 48), (96, 64), (11, 11)])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5])
def test_ssim_equals_torchmetrics(size, noise):
    a = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), size, mode="bilinear")
    b = (a + noise * torch.randn_like(a)).clamp(0, 1)
    expected = structural_similarity_index_measure(a.double(), b.double(), data_range=1.0)
    assert float(structural_similarity(a, b)) == pytest.approx(float(expected), abs=2e-5)


def test_psnr_equals_its_definition_over_the_shorter_length():
    a, b = (
        torch.randint(0, 256, (6, 3, 24, 24), dtype=torch.uint8),
        torch.randint(0, 256, (9, 3, 24, 24), dtype=torch.uint8),
    )
    features = Fidelity().read(media(a), media(b))
    error = (a.double() - b[:6].double()).square().mean((1, 2, 3)) / 255**2
    assert features["psnr"] == pytest.approx((-10 * error.log10()).numpy(), rel=1e-5)
    assert Fidelity().compare(features, features, {}, None)["PSNR"] == pytest.approx(features["psnr"].mean())


def test_equal_pictures_score_best_and_a_share_of_pictures_is_spread_evenly():
    a = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    features = Fidelity(frames=3).read(media(a), media(a))
    assert features["psnr"].tolist() == [100.0] * 3
    assert features["ssim"] == pytest.approx(1)
    same = media(a)
    assert Fidelity().compare(Fidelity().read(same, same), {}, {}, None) == {"PSNR": 100.0, "SSIM": 1.0}
