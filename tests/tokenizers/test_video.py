from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.video import LatentStatistics, VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "demo" / "video_vae"


@pytest.fixture
def tokenizer() -> StackedVAE:
    """A small one whose latents vary in scale from channel to channel."""
    small = StackedVAE(6, patch=2, widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    for value in small.parameters():
        torch.nn.init.normal_(value, std=0.1)
    return small


def clip(frames: int = 9, size: int = 16, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, frames, size, size) * 2 - 1


@pytest.mark.parametrize("frames", [2, 4, 8, 16])
def test_clips_that_are_not_4k_plus_1_are_refused(tokenizer: VideoTokenizer, frames: int) -> None:
    with pytest.raises(TokenizerError, match=r"4T\+1 frames, got"):
        tokenizer.encode(clip(frames))


def test_the_error_names_the_length_to_cut_to(tokenizer: VideoTokenizer) -> None:
    with pytest.raises(TokenizerError, match="cut it to 13"):
        tokenizer.encode(clip(16))


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        (torch.zeros(1, 3, 5, 18, 16), "multiples of 4"),
        (torch.zeros(1, 5, 3, 16, 16), "batch, 3, time"),
        (torch.zeros(1, 3, 5, 16, 16, dtype=torch.uint8), "must be float"),
    ],
)
def test_wrong_frames_are_refused(tokenizer: VideoTokenizer, frames: torch.Tensor, match: str) -> None:
    with pytest.raises(TokenizerError, match=match):
        tokenizer.encode(frames)


def test_wrong_latents_are_refused(tokenizer: VideoTokenizer) -> None:
    with pytest.raises(TokenizerError, match="batch, 6, chunks"):
        tokenizer.decode(torch.zeros(1, 5, 2, 4, 4))


def test_latents_are_normalised_with_the_measured_statistics(tokenizer: VideoTokenizer) -> None:
    frames = clip(17, batch=4)
    raw = tokenizer.encode_raw(frames)
    assert (raw.std((0, 2, 3, 4)) - 1).abs().max() > 0.2  # otherwise there is nothing to normalise
    statistics = LatentStatistics(tokenizer.channels)
    for part in raw.split(1):
        statistics.update(part)
    tokenizer.set_statistics(*statistics.mean_and_std())
    latents = tokenizer.encode(frames)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(6), atol=1e-2, rtol=0)


def test_decode_undoes_the_normalisation(tokenizer: VideoTokenizer) -> None:
    """A wrong scale or a mean of the wrong sign changes the frames."""
    frames = clip()
    plain = tokenizer.decode(tokenizer.encode(frames))
    tokenizer.set_statistics(torch.linspace(-2, 2, 6), torch.linspace(0.3, 3, 6))
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(frames)), plain, atol=1e-5, rtol=0)
    assert (tokenizer.decode(tokenizer.encode_raw(frames)) - plain).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (torch.zeros(5), torch.ones(5)),
        (torch.zeros(6), torch.zeros(6)),
        (torch.full((6,), float("nan")), torch.ones(6)),
    ],
)
def test_impossible_statistics_are_refused(tokenizer: VideoTokenizer, mean: torch.Tensor, std: torch.Tensor) -> None:
    with pytest.raises(TokenizerError, match="statistics"):
        tokenizer.set_statistics(mean, std)


def test_statistics_need_latents() -> None:
    with pytest.raises(TokenizerError, match="no latents were seen"):
        LatentStatistics(3).mean_and_std()


def test_save_and_load_keep_tokens_statistics_and_fingerprint(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    tokenizer.set_statistics(torch.arange(6.0), torch.arange(1.0, 7.0))
    tokenizer.save(tmp_path)
    loaded = StackedVAE.load(tmp_path)
    frames = clip()
    assert torch.equal(loaded.encode(frames), tokenizer.encode(frames))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert not loaded.training


def test_the_fingerprint_covers_the_statistics(tokenizer: VideoTokenizer) -> None:
    before = tokenizer.fingerprint()
    tokenizer.set_statistics(torch.zeros(6), torch.full((6,), 2.0))
    assert tokenizer.fingerprint() != before


def test_another_class_is_refused(tokenizer: VideoTokenizer, tmp_path: Path) -> None:
    from vidchat.tokenizers.packed import PackedVAE

    tokenizer.save(tmp_path)
    with pytest.raises(TokenizerError, match="holds a StackedVAE, not a PackedVAE"):
        PackedVAE.load(tmp_path)
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        StackedVAE.load(tmp_path / "nowhere")


def test_the_shipped_tokenizer_normalises_latents_and_reconstructs_frames() -> None:
    """On drawn heads that it was not trained on: a wrong scale, mean or set of weights fails."""
    if not (SHIPPED / "model.safetensors").is_file():
        pytest.skip("checkpoints/demo/video_vae is not there")
    np = pytest.importorskip("numpy")
    from vidchat.playground.people.face import draw_face
    from vidchat.playground.people.head import Pose
    from vidchat.playground.people.person import random_identity

    rng = np.random.default_rng(987)
    heads = [random_identity(rng) for _ in range(24)]
    drawn = [[draw_face(head, Pose(mouth=n / 4), (96, 96)) for n in range(5)] for head in heads]
    frames = torch.from_numpy(np.array(drawn)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    tokenizer = StackedVAE.load(SHIPPED)
    with torch.inference_mode():
        latents = tokenizer.encode(frames)
        error = (tokenizer.decode(latents) - frames).square().mean()
    assert latents.shape == (24, tokenizer.channels, 2, 6, 6)
    assert 0.7 < float(latents.std()) < 1.3
    assert float(latents.mean().abs()) < 0.2
    assert 10 * torch.log10(4 / error) > 23
