from __future__ import annotations

import pytest
import torch

from vidchat.tokenizers.quantizer import ResidualQuantizer, VectorQuantizer, code_use


def clusters(count: int, width: int = 4, each: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    centres = 10 * torch.randn(count, width)
    return centres, (centres[:, None] + 0.05 * torch.randn(count, each, width)).reshape(-1, width)


def test_codes_name_the_nearest_entry() -> None:
    quantizer = VectorQuantizer(16, 4)
    vectors = torch.randn(3, 5, 4)
    brute = torch.cdist(vectors.reshape(-1, 4), quantizer.codebook).argmin(1).view(3, 5)
    assert torch.equal(quantizer.encode(vectors), brute)
    assert torch.equal(quantizer.decode(brute), quantizer.codebook[brute])


def test_autocast_does_not_change_the_codes() -> None:
    quantizer = VectorQuantizer(256, 64)
    vectors = quantizer.codebook[None] + 0.3 * torch.randn(1, 256, 64)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.encode(vectors)
    assert torch.equal(codes, quantizer.encode(vectors))


def test_kmeans_finds_the_clusters() -> None:
    _, vectors = clusters(8)
    quantizer = VectorQuantizer(16, 4)  # more entries than clusters, so that none is missed
    quantizer.initialize(vectors)
    residual = vectors - quantizer.decode(quantizer.encode(vectors))
    assert residual.std() < 0.02 * vectors.std()


def test_kmeans_takes_fewer_vectors_than_entries() -> None:
    quantizer = VectorQuantizer(16, 4)
    quantizer.initialize(torch.randn(5, 4))
    assert torch.isfinite(quantizer.codebook).all()


def test_an_entry_moves_to_the_mean_of_its_vectors() -> None:
    quantizer = VectorQuantizer(2, 3, decay=0.9, revive_below=0.0)
    quantizer.codebook.copy_(torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]))
    vectors = torch.tensor([[3.0, 0, 0], [5.0, 0, 0], [-1.0, 0, 0], [-3.0, 0, 0]])
    quantizer.update(vectors, quantizer.encode(vectors))
    # Both have an even share (usage stays 1), so an entry becomes 0.9 x itself + 0.1 x the mean.
    assert torch.allclose(quantizer.usage, torch.ones(2))
    assert torch.allclose(quantizer.codebook[:, 0], torch.tensor([0.9 + 0.4, -0.9 - 0.2]))
    for _ in range(200):
        quantizer.update(vectors, quantizer.encode(vectors))
    assert torch.allclose(quantizer.codebook[:, 0], torch.tensor([4.0, -2.0]), atol=1e-3)


def test_dead_entries_are_replaced() -> None:
    centres, vectors = clusters(8)
    quantizer = VectorQuantizer(8, 4, decay=0.8)
    quantizer.codebook.fill_(1000.0)
    quantizer.codebook[0] = 0  # all vectors are assigned to one entry: a collapsed codebook
    for _ in range(60):
        quantizer.update(vectors, quantizer.encode(vectors))
    used, _ = code_use(quantizer.encode(vectors)[:, None], 8)
    assert used.item() >= 7
    assert quantizer.codebook.abs().max() < 2 * centres.abs().max()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_non_finite_vectors_do_not_change_the_codebook(value: float) -> None:
    _, vectors = clusters(8)
    quantizer = VectorQuantizer(8, 4, decay=0.8)
    quantizer.usage[3] = 0.0  # dead, and not to be replaced by non-finite vectors
    before = quantizer.codebook.clone(), quantizer.usage.clone()
    vectors[5, 2] = value
    quantizer.update(vectors, quantizer.encode(vectors))
    assert torch.equal(quantizer.codebook, before[0])
    assert torch.equal(quantizer.usage, before[1])


def test_evaluation_does_not_change_the_codebooks() -> None:
    quantizer = ResidualQuantizer(2, 8, 4)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()(torch.randn(2, 6, 4))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.train()(torch.randn(2, 6, 4))
    assert not torch.equal(quantizer.state_dict()["levels.0.codebook"], before["levels.0.codebook"])


def test_more_codebooks_leave_a_smaller_residual() -> None:
    quantizer = ResidualQuantizer(4, 16, 4)
    vectors = torch.randn(2000, 4)
    quantizer.initialize(vectors)
    codes = quantizer.encode(vectors)
    errors = []
    for count in range(1, 5):
        entries = [quantizer.levels[k].decode(codes[:, k]) for k in range(count)]
        errors.append((vectors - torch.stack(entries).sum(0)).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]
    assert torch.allclose(quantizer.decode(codes), torch.stack(entries).sum(0))


def test_the_forward_pass_is_encode_then_decode() -> None:
    quantizer = ResidualQuantizer(3, 8, 4).eval()
    vectors = torch.randn(2, 6, 4)
    quantized = quantizer(vectors)
    assert torch.equal(quantized.codes, quantizer.encode(vectors))
    assert torch.allclose(quantized.vectors, quantizer.decode(quantized.codes), atol=1e-6)


def test_the_gradient_goes_straight_through() -> None:
    quantizer = ResidualQuantizer(3, 8, 4)
    vectors = torch.randn(2, 6, 4, requires_grad=True)
    weights = torch.randn(2, 6, 4)
    (quantizer(vectors).vectors * weights).sum().backward()
    assert torch.equal(vectors.grad, weights)


def test_the_commitment_gradient_points_to_the_entries() -> None:
    quantizer = ResidualQuantizer(1, 8, 4).eval()
    vectors = torch.randn(1, 5, 4, requires_grad=True)
    quantized = quantizer(vectors)
    quantized.commitment.backward()
    with torch.no_grad():
        residual = vectors - quantizer.decode(quantized.codes)
    assert torch.allclose(vectors.grad, 2 * residual / residual.numel(), atol=1e-7)
    assert not quantizer.levels[0].codebook.requires_grad


def test_dropout_uses_fewer_codebooks_in_training_only() -> None:
    quantizer = ResidualQuantizer(4, 8, 4, dropout=1.0)
    vectors = torch.randn(64, 3, 4)
    full = quantizer.decode(quantizer.encode(vectors))
    for level in quantizer.levels:
        level.decay = 1.0
        level.revive_below = 0.0
    trained = quantizer(vectors).vectors
    same = torch.isclose(trained, full, atol=1e-5).all(2).all(1)
    assert 4 < same.sum() < 40  # about a quarter uses all four
    assert torch.allclose(quantizer.eval()(vectors).vectors, full, atol=1e-5)


def test_code_use_counts_entries_and_their_perplexity() -> None:
    codes = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1]])
    used, perplexity = code_use(codes, 8)
    assert used.tolist() == [1, 3]
    assert torch.isclose(perplexity[0], torch.tensor(1.0))
    assert torch.isclose(perplexity[1], torch.tensor(2.0**1.5))
