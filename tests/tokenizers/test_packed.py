from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from vidchat.tokenizers.chunkwise import ChunkwiseVAE
from vidchat.tokenizers.packed import PackedVAE
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.weights import TokenizerError


def tiny() -> nn.Module:
    widths, blocks = (8, 8, 8), (1, 1, 1)
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        latent_channels=3,
    )


def kl() -> nn.Module:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=2,
    )


def dc() -> nn.Module:
    return AutoencoderDC(
        latent_channels=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )


def stacked() -> StackedVAE:
    vae = StackedVAE(6, patch=2, widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    for value in vae.parameters():
        nn.init.normal_(value, std=0.1)
    return vae


MAKERS = {
    "tiny": lambda: PackedVAE(tiny()),
    "kl": lambda: PackedVAE(kl()),
    "dc": lambda: PackedVAE(dc()),
    "stacked": stacked,
}


@pytest.fixture(params=MAKERS)
def vae(request: pytest.FixtureRequest) -> ChunkwiseVAE:
    torch.manual_seed(0)
    tokenizer: ChunkwiseVAE = MAKERS[request.param]().eval()
    tokenizer.set_statistics(torch.linspace(-1, 1, tokenizer.channels), torch.linspace(0.5, 2, tokenizer.channels))
    return tokenizer


def clip(frames: int = 13) -> Tensor:
    return torch.rand(2, 3, frames, 16, 16) * 2 - 1


def test_shapes(vae: ChunkwiseVAE) -> None:
    latents = vae.encode(clip())
    side = 16 // vae.spatial_stride
    assert latents.shape == (2, vae.channels, 4, side, side)
    assert vae.decode(latents).shape == (2, 3, 13, 16, 16)


def test_a_clip_of_one_frame_is_one_chunk(vae: ChunkwiseVAE) -> None:
    frames = clip(1)
    assert vae.decode(vae.encode(frames)).shape == frames.shape


def test_a_latent_depends_on_its_own_chunk_only(vae: ChunkwiseVAE) -> None:
    """Latent 2 encodes frames 5..8: its gradient is non-zero for each of these and exactly zero for all others."""
    frames = clip().requires_grad_()
    vae.encode(frames)[:, :, 2].square().sum().backward()
    assert frames.grad is not None
    gradient = frames.grad.abs().sum((0, 1, 3, 4))
    assert (gradient[5:9] > 0).all()
    assert gradient[:5].sum() == 0
    assert gradient[9:].sum() == 0


def test_frames_depend_on_their_own_latent_only(vae: ChunkwiseVAE) -> None:
    latents = vae.encode(clip()).detach().requires_grad_()
    vae.decode_raw(vae.denormalise(latents))[:, :, 5:9].square().sum().backward()
    assert latents.grad is not None
    gradient = latents.grad.abs().sum((0, 1, 3, 4))
    assert gradient[2] > 0
    assert gradient[[0, 1, 3]].sum() == 0


def test_streaming_equals_decoding_the_whole_clip(vae: ChunkwiseVAE) -> None:
    latents = vae.encode(clip())
    whole = vae.decode(latents)
    for sizes in ([1, 1, 1, 1], [2, 2], [1, 3]):
        stream = vae.stream()
        parts = [stream.push(part) for part in latents.split(sizes, dim=2)]
        assert parts[0].shape[2] == 4 * sizes[0] - 3
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0)


def test_two_streams_are_independent(vae: ChunkwiseVAE) -> None:
    latents = vae.encode(clip())
    first, second = vae.stream(), vae.stream()
    first.push(latents[:, :, :1])
    assert second.push(latents[:, :, :1]).shape[2] == 1
    assert first.push(latents[:, :, 1:2]).shape[2] == 4


def test_save_and_load(vae: ChunkwiseVAE, tmp_path: Path) -> None:
    vae.save(tmp_path)
    loaded = type(vae).load(tmp_path)
    frames = clip(5)
    assert torch.equal(loaded.encode(frames), vae.encode(frames))
    assert loaded.fingerprint() == vae.fingerprint()


def test_packed_channels_are_those_of_the_frames_in_order() -> None:
    """The channels of frame p of a chunk start at p times the channels of the image VAE."""
    image_vae = tiny().eval()
    packed = PackedVAE(image_vae)
    frames = clip(5)
    latents = packed.encode(frames)
    for p in range(4):
        alone = image_vae.encode(frames[:, :, 1 + p]).latents
        torch.testing.assert_close(latents[:, 3 * p : 3 * p + 3, 1], alone, atol=1e-6, rtol=0)
    assert torch.equal(latents[:, :3, 0], latents[:, 9:, 0])  # frame 0, repeated


def test_pretrained_statistics_come_from_the_scaling_factor(tmp_path: Path) -> None:
    image_vae = kl()
    image_vae.register_to_config(scaling_factor=0.25, shift_factor=0.5)
    image_vae.save_pretrained(tmp_path)
    packed = PackedVAE.from_pretrained(str(tmp_path), kind="AutoencoderKL")
    frames = clip(1)
    mode = image_vae.eval().encode(frames[:, :, 0]).latent_dist.mode()
    torch.testing.assert_close(packed.encode(frames)[:, :2, 0], (mode - 0.5) * 0.25, atol=1e-5, rtol=0)


def test_a_missing_image_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be loaded as AutoencoderTiny"):
        PackedVAE.from_pretrained(str(tmp_path), kind="AutoencoderTiny")


def test_other_classes_than_image_vaes_are_refused() -> None:
    with pytest.raises(TokenizerError, match="Linear is not an image VAE"):
        PackedVAE(nn.Linear(1, 1))
    with pytest.raises(TokenizerError, match="not an image VAE"):
        PackedVAE.from_pretrained("somewhere", kind="AutoencoderKLWan")


@pytest.mark.parametrize("motion", [1.0, 3.0])
def test_principal_components_reconstruct_blocks_that_vary_in_as_many_directions(motion: float) -> None:
    """6 channels reconstruct blocks that vary in 6 directions exactly, without training, with latents of variance 1."""
    vae = StackedVAE(6, patch=2, widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    directions = torch.randn(6, 3, 4, 4)
    strengths = torch.randn(8, 6, 4) * torch.arange(1.0, 7.0)[:, None]
    still = torch.einsum("bkn,kchw->bcnhw", strengths, directions).repeat(1, 1, 1, 4, 4) + 0.3
    frames = torch.cat([still[:, :, :1], still.repeat_interleave(4, dim=2)], dim=2)
    vae.start_from([frames[:4], frames[4:]], motion)
    raw = vae.encode_raw(frames)
    torch.testing.assert_close(vae.decode_raw(raw), frames, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(raw.std((0, 2, 3, 4)), torch.ones(6), atol=0.05, rtol=0)


def test_the_weight_of_motion_chooses_components_that_move() -> None:
    """Six static directions of large variance and one moving direction of small variance, for six channels."""
    static, moving = torch.randn(6, 3, 1, 4, 4), torch.randn(3, 4, 4, 4)
    moving -= moving.mean(1, keepdim=True)
    chunks = (torch.randn(200, 6, 1, 1, 1, 1) * static).sum(1) + 0.2 * torch.randn(200, 1, 1, 1, 1) * moving
    frames = torch.cat([chunks.mean(2, keepdim=True), chunks], dim=2)
    ratio = {}
    for motion in (1.0, 20.0):
        vae = StackedVAE(6, patch=2, widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
        vae.start_from([frames], motion)
        output = vae.decode_raw(vae.encode_raw(frames))[:, :, 1:]
        true = chunks - chunks.mean(2, keepdim=True)
        ratio[motion] = float((output - output.mean(2, keepdim=True)).std() / true.std())
    assert ratio[1.0] < 0.2
    assert 0.9 < ratio[20.0] < 1.1


def test_too_few_clips_for_principal_components_are_refused() -> None:
    vae = StackedVAE(6, patch=2, widths=(8, 12), encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    with pytest.raises(TokenizerError, match="vary in fewer than 6 directions"):
        vae.start_from([torch.zeros(1, 3, 5, 8, 8)])


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(TokenizerError, match="one entry per resolution"):
        StackedVAE(4, patch=2, widths=(8, 8), encoder_blocks=(1,), decoder_blocks=(1, 1))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, safe_serialization=False)  # type: ignore[operator]
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        PackedVAE.from_pretrained(str(tmp_path), kind="AutoencoderTiny")
