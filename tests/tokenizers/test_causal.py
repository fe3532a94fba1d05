from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
)
from torch import Tensor, nn

from vidchat.tokenizers.causal import CausalVAE
from vidchat.tokenizers.weights import TokenizerError


def wan(**changes: object) -> nn.Module:
    settings = {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 2.0, 1.0, 1.5],
    }
    return AutoencoderKLWan(**(settings | changes))


def wan22() -> nn.Module:
    return wan(is_residual=True, patch_size=2, in_channels=12, out_channels=12)


def ltx(decoder_causal: bool = True) -> nn.Module:
    return AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=2,
        decoder_causal=decoder_causal,
    )


def cosmos() -> nn.Module:
    return AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(),
        resolution=32,
        num_layers=1,
        patch_size=2,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 2.0, 1.0, 1.5],
    )


def hunyuan15() -> nn.Module:
    return AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )


def hunyuan() -> nn.Module:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def cogvideox() -> nn.Module:
    return AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


STREAMING = {"wan": wan, "wan22": wan22, "ltx": ltx, "cosmos": cosmos, "hunyuan15": hunyuan15}
LOOKING_AHEAD = {"ltx": lambda: ltx(False), "hunyuan": hunyuan, "cogvideox": cogvideox}


@pytest.fixture(params=STREAMING)
def vae(request: pytest.FixtureRequest) -> CausalVAE:
    torch.manual_seed(0)
    return CausalVAE(STREAMING[request.param]()).eval()


def clip(vae: CausalVAE, chunks: int = 3, size: int = 32) -> Tensor:
    return torch.rand(1, 3, 1 + vae.temporal_stride * chunks, size, size) * 2 - 1


@torch.inference_mode()
def test_shapes_follow_the_strides(vae: CausalVAE) -> None:
    pictures = clip(vae)
    latents = vae.encode(pictures)
    assert vae.causal
    assert latents.shape == (1, vae.channels, 4, *vae.grid((32, 32)))
    assert vae.decode(latents).shape == pictures.shape


@torch.inference_mode()
def test_latents_do_not_depend_on_later_pictures(vae: CausalVAE) -> None:
    pictures = clip(vae)
    latents = vae.encode(pictures)
    changed = pictures.clone()
    changed[:, :, 1 + 2 * vae.temporal_stride :] += 0.5
    difference = (vae.encode(changed) - latents).abs().amax((0, 1, 3, 4))
    assert difference[:3].max() < 1e-5
    assert difference[3] > 1e-3


@torch.inference_mode()
def test_pictures_do_not_depend_on_later_latents(vae: CausalVAE) -> None:
    latents = vae.encode(clip(vae))
    changed = latents.clone()
    changed[:, :, 3] += 2.0
    decoded = (vae.decode_raw(changed) - vae.decode_raw(latents)).abs().amax((0, 1, 3, 4))
    known = 1 + 2 * vae.temporal_stride
    assert decoded[:known].max() < 1e-5
    assert decoded[known:].max() > 1e-4


@torch.inference_mode()
def test_streaming_equals_decoding_the_whole(vae: CausalVAE) -> None:
    latents = vae.encode(clip(vae))
    stream, other = vae.stream(), vae.stream()
    parts = []
    for latent in latents.split(1, dim=2):
        parts.append(stream.push(latent))
        other.push(torch.randn_like(latent))  # a second stream in between changes nothing
    assert [part.shape[2] for part in parts] == [1, *[vae.temporal_stride] * 3]
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latents), atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [wan, wan22])
@torch.inference_mode()
def test_wan_is_diffusers_wan(make: object) -> None:
    model = make().eval()  # type: ignore[operator]
    vae = CausalVAE(model)
    pictures = clip(vae)
    mode = model.encode(pictures).latent_dist.mode()
    torch.testing.assert_close(vae.encode_raw(pictures), mode, atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.decode_raw(mode).clamp(-1, 1), model.decode(mode).sample, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [wan, cosmos])
@torch.inference_mode()
def test_statistics_come_from_the_configuration(make: object) -> None:
    model = make().eval()  # type: ignore[operator]
    vae = CausalVAE(model)
    pictures = clip(vae)
    mean = torch.tensor(model.config.latents_mean).view(1, 4, 1, 1, 1)
    std = torch.tensor(model.config.latents_std).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(vae.encode(pictures), (vae.encode_raw(pictures) - mean) / std, atol=1e-5, rtol=0)


def test_one_scaling_factor_serves_all_channels() -> None:
    model = hunyuan15()
    torch.testing.assert_close(CausalVAE(model).latents_std, torch.full((4,), 1 / model.config.scaling_factor))


def test_ltx_statistics_are_its_buffers() -> None:
    model = ltx()
    model.latents_mean.fill_(0.7)
    assert torch.equal(CausalVAE(model).latents_mean, torch.full((4,), 0.7))


def test_wan_training_sees_no_clamp() -> None:
    """Where the output exceeds 1 the gradient must not vanish."""
    vae = CausalVAE(wan())
    with torch.no_grad():
        vae.vae.decoder.conv_out.bias.fill_(5.0)
    latents = torch.randn(1, 4, 1, 4, 4, requires_grad=True)
    vae.decode_raw(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOOKING_AHEAD)
@torch.inference_mode()
def test_decoders_that_look_ahead_say_why_they_cannot_stream(name: str) -> None:
    vae = CausalVAE(LOOKING_AHEAD[name]()).eval()
    assert not vae.causal
    with pytest.raises(TokenizerError, match="cannot stream: its"):
        vae.stream()
    latents = vae.encode(clip(vae, 2))
    changed = latents.clone()
    changed[:, :, -1] += 2.0
    early = (vae.decode(changed) - vae.decode(latents))[:, :, : 1 + vae.temporal_stride]
    if name != "cogvideox":  # its chunks mix within themselves
        assert early.abs().max() > 1e-5  # the claim is true


def test_save_and_load(vae: CausalVAE, tmp_path: Path) -> None:
    vae.save(tmp_path)
    loaded = CausalVAE.load(tmp_path)
    assert loaded.fingerprint() == vae.fingerprint()
    with torch.inference_mode():
        pictures = clip(vae, 1)
        assert torch.equal(loaded.encode(pictures), vae.encode(pictures))


def test_from_pretrained_reads_what_diffusers_wrote(tmp_path: Path) -> None:
    model = wan()
    model.save_pretrained(tmp_path / "vae")
    vae = CausalVAE.from_pretrained(str(tmp_path), kind="AutoencoderKLWan", subfolder="vae")
    assert vae.fingerprint() == CausalVAE(model).fingerprint()


@torch.inference_mode()
def test_frame_counts_are_not_cut_in_silence() -> None:
    vae = CausalVAE(wan())
    with pytest.raises(TokenizerError, match="cut it to 13"):
        vae.encode(torch.zeros(1, 3, 16, 32, 32))


def test_unchecked_models_and_strides_are_refused() -> None:
    with pytest.raises(TokenizerError, match="Linear was not checked for causality"):
        CausalVAE(nn.Linear(1, 1))
    with pytest.raises(TokenizerError, match="temporal stride must be that, not 2"):
        CausalVAE(wan(temperal_downsample=[False, True]))
    with pytest.raises(TokenizerError, match="latent statistics need 6 channels"):
        CausalVAE(wan(z_dim=6))
