from __future__ import annotations

import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torchmetrics.functional.image import structural_similarity_index_measure

from vidchat.bench.fidelity import Fidelity, structural_similarity
from vidchat.data.media.read import Media


def media(frames):
    return Media(frames, torch.zeros(len(frames) * 640), 25, 16000)


def by_definition(a, b):
    """Computes SSIM of two frames (3, H, W) uint8 in float64, with scipy's filters."""

    def blur(x):
        for axis in (1, 2):
            x = gaussian_filter1d(x, 1.5, axis, mode="mirror", radius=5)
        return x

    x, y = (p.double().numpy() / 255 for p in (a, b))
    top = (2 * blur(x) * blur(y) + 1e-4) * (2 * (blur(x * y) - blur(x) * blur(y)) + 9e-4)
    spread = blur(x * x) - blur(x) ** 2 + blur(y * y) - blur(y) ** 2
    return (top / ((blur(x) ** 2 + blur(y) ** 2 + 1e-4) * (spread + 9e-4))).mean()


@pytest.mark.parametrize("size", [(32, 48), (96, 64), (11, 11), (48, 31), (97, 40)])
@pytest.mark.parametrize("noise", [0, 5, 100])
def test_ssim_equals_torchmetrics_and_its_definition(size, noise):
    a = torch.nn.functional.interpolate(255 * torch.rand(7, 3, 8, 8), size, mode="bilinear").byte()
    b = (a + noise * torch.randn(a.shape)).clamp(0, 255).byte()
    found = structural_similarity(a, b)
    assert found.shape == (7,)
    for one, other, value in zip(a, b, found, strict=True):
        x, y = (p[None].double() / 255 for p in (one, other))
        expected = structural_similarity_index_measure(x, y, data_range=1.0)
        assert float(value) == pytest.approx(float(expected), abs=2e-6)
        assert float(value) == pytest.approx(by_definition(one, other), abs=2e-6)


def test_ssim_of_flat_frames_does_not_suffer_from_rounding():
    """Their variances are differences of nearly equal numbers."""
    a = torch.full((1, 3, 64, 64), 201, dtype=torch.uint8)
    b = torch.full((1, 3, 64, 64), 190, dtype=torch.uint8)
    x, y = 201 / 255, 190 / 255
    assert float(structural_similarity(a, b)) == pytest.approx((2 * x * y + 1e-4) / (x * x + y * y + 1e-4), abs=1e-4)
    with pytest.raises(ValueError, match="11 x 11"):
        structural_similarity(a[..., :10], b[..., :10])


def test_psnr_equals_its_definition_over_the_shorter_length():
    a, b = (
        torch.randint(0, 256, (21, 3, 24, 24), dtype=torch.uint8),
        torch.randint(0, 256, (40, 3, 24, 24), dtype=torch.uint8),
    )
    features = Fidelity().read(media(a), media(b))
    assert features["ssim"] == pytest.approx(structural_similarity(a, b[:21]).numpy())
    error = (a.double() - b[:21].double()).square().mean((1, 2, 3)) / 255**2
    assert features["psnr"] == pytest.approx((-10 * error.log10()).numpy(), rel=1e-5)
    assert Fidelity().compare(features, features, {}, None)["PSNR"] == pytest.approx(features["psnr"].mean())


def test_equal_frames_score_best_and_a_share_of_frames_is_evenly_spaced():
    a = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8)
    features = Fidelity(frames=3).read(media(a), media(a))
    assert features["psnr"].tolist() == [100.0] * 3
    assert features["ssim"] == pytest.approx(1)
    same = media(a)
    assert Fidelity().compare(Fidelity().read(same, same), {}, {}, None) == {"PSNR": 100.0, "SSIM": 1.0}
