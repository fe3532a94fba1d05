from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

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
from vidchat.tokenizers.causal_streams import WanDecoder
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


def ltx(decoder_causal: bool = True, **changes: object) -> nn.Module:
    settings = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("LTXVideoDownBlock3D",) * 3,
        "decoder_block_out_channels": (8, 8, 8),
        "layers_per_block": (1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "spatio_temporal_scaling": (True, True, False),
        "decoder_spatio_temporal_scaling": (True, True, False),
        "decoder_inject_noise": (False,) * 4,
        "upsample_residual": (False,) * 3,
        "upsample_factor": (1,) * 3,
        "patch_size": 2,
        "decoder_causal": decoder_causal,
    }
    return AutoencoderKLLTXVideo(**(settings | changes))


def cosmos(**changes: object) -> nn.Module:
    settings = {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (),
        "resolution": 32,
        "num_layers": 1,
        "patch_size": 2,
        "spatial_compression_ratio": 8,
        "temporal_compression_ratio": 4,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 2.0, 1.0, 1.5],
    }
    return AutoencoderKLCosmos(**(settings | changes))


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


def clip(vae: CausalVAE, chunks: int = 3, size: int = 16) -> Tensor:
    return torch.rand(1, 3, 1 + vae.temporal_stride * chunks, size, size) * 2 - 1


@torch.inference_mode()
def test_shapes_follow_the_strides(vae: CausalVAE) -> None:
    frames = clip(vae)
    latents = vae.encode(frames)
    assert vae.causal
    assert latents.shape == (1, vae.channels, 4, *vae.grid((16, 16)))
    assert vae.decode(latents).shape == frames.shape


@torch.inference_mode()
def test_latents_do_not_depend_on_later_frames(vae: CausalVAE) -> None:
    frames = clip(vae)
    latents = vae.encode(frames)
    changed = frames.clone()
    changed[:, :, 1 + 2 * vae.temporal_stride :] += 0.5
    difference = (vae.encode(changed) - latents).abs().amax((0, 1, 3, 4))
    assert difference[:3].max() < 1e-5
    assert difference[3] > 1e-4


@torch.inference_mode()
def test_frames_do_not_depend_on_later_latents(vae: CausalVAE) -> None:
    latents = vae.encode(clip(vae))
    changed = latents.clone()
    changed[:, :, 3] += 2.0
    decoded = (vae.decode_raw(changed) - vae.decode_raw(latents)).abs().amax((0, 1, 3, 4))
    unchanged = 1 + 2 * vae.temporal_stride
    assert decoded[:unchanged].max() < 1e-5
    assert decoded[unchanged:].max() > 1e-4


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [3, 1, 1], [1, 2, 2], [5]])
@torch.inference_mode()
def test_streaming_equals_decoding_the_whole_clip(vae: CausalVAE, sizes: list[int]) -> None:
    latents = torch.randn(2, vae.channels, 5, *vae.grid((16, 16)))
    stream, other = vae.stream(), vae.stream()
    parts = []
    for part in latents.split(sizes, dim=2):
        parts.append(stream.push(part))
        other.push(torch.randn_like(part))  # a second stream must not interfere
    stride = vae.temporal_stride
    assert [part.shape[2] for part in parts] == [1 + stride * (sizes[0] - 1), *(stride * n for n in sizes[1:])]
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latents), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_memory_of_a_stream_does_not_grow(vae: CausalVAE) -> None:
    """After 8 chunks it is that after 4 chunks, except for the keys and values of attention over time."""
    latents = torch.randn(1, vae.channels, 8, *vae.grid((16, 16)))
    stream, sizes = vae.stream(), []
    for count, latent in enumerate(latents.split(1, dim=2), 1):
        stream.push(latent)
        if count in (4, 8):
            sizes.append(state_size(stream))
    attention_layers = {"AutoencoderKLCosmos": 1, "AutoencoderKLHunyuanVideo15": 1}.get(type(vae.vae).__name__, 0)
    attended = 2 * 4 * attention_layers * stream_width(vae) * math.prod(vae.grid((16, 16)))
    assert sizes[0] > 0
    assert sizes[1] - sizes[0] == attended


@pytest.mark.parametrize("name", ["cosmos", "hunyuan15"])
@torch.inference_mode()
def test_look_back_bounds_the_memory_of_attention_over_time(name: str) -> None:
    """Memory does not grow; up to the limit, and for any push sizes, the frames are those of the whole clip."""
    vae = CausalVAE(STREAMING[name](), look_back=2).eval()
    latents = torch.randn(1, 4, 7, *vae.grid((16, 16)))
    streamed = []
    for sizes in ([1] * 7, [3, 1, 3]):
        stream, state_sizes, parts = vae.stream(), [], []
        for part in latents.split(sizes, dim=2):
            parts.append(stream.push(part))
            state_sizes.append(state_size(stream))
        streamed.append(torch.cat(parts, dim=2))
    torch.testing.assert_close(streamed[0], streamed[1], atol=1e-5, rtol=0)
    assert state_sizes[0] == state_sizes[-1], "three latents exceed the limit"
    whole, equal = vae.decode(latents), 1 + 2 * vae.temporal_stride
    torch.testing.assert_close(streamed[0][:, :, :equal], whole[:, :, :equal], atol=1e-5, rtol=0)
    assert (streamed[0] - whole)[:, :, equal + vae.temporal_stride :].abs().max() > 1e-6


def test_a_deleted_stream_is_freed_at_once(vae: CausalVAE) -> None:
    """Its memory does not wait for garbage collection."""
    stream = vae.stream()
    stream.push(torch.randn(1, vae.channels, 1, *vae.grid((16, 16))))
    reference = weakref.ref(stream.decoder)
    gc.disable()
    try:
        del stream
        assert reference() is None
    finally:
        gc.enable()


def state_size(stream: Any) -> int:
    """Number of values in a stream's state: tensors that are reachable from it and are not parameters."""
    if isinstance(stream.decoder, WanDecoder):
        return sum(cached.numel() for cached in stream.decoder.features if isinstance(cached, Tensor))
    tensors: dict[int, Tensor] = {}
    for module in stream.decoder.decoder.modules():
        cells = [module.forward] if "forward" in vars(module) else []
        while cells:
            for cell in cells.pop().__closure__ or ():
                value = cell.cell_contents
                if callable(value) and hasattr(value, "__closure__"):
                    cells.append(value)
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, Tensor):
                        tensors[id(tensor)] = tensor
    return sum(tensor.numel() for tensor in tensors.values())


def stream_width(vae: CausalVAE) -> int:
    """Channels of the decoder's mid block, which has attention."""
    settings = dict(vae.vae.config)
    return int((settings.get("decode_block_out_channels") or settings.get("block_out_channels") or [0])[-1])


@torch.inference_mode()
def test_a_vae_in_half_precision_returns_single_precision(vae: CausalVAE) -> None:
    """The network computes in the type of its weights; latents, frames and statistics keep the caller's type."""
    frames = clip(vae, 1)
    exact = vae.encode(frames)
    whole, mean = vae.decode(exact), vae.latents_mean.clone()
    vae.vae.to(torch.bfloat16)
    stream = vae.stream()
    streamed = torch.cat([stream.push(latent) for latent in exact.split(1, dim=2)], dim=2)
    assert torch.equal(vae.latents_mean, mean)
    for decoded in (vae.decode(exact), streamed):
        assert decoded.dtype == torch.float32
        assert (decoded - whole).abs().mean() < 0.03
    if isinstance(vae.vae, AutoencoderKLCosmos):
        return  # its encoder pools, which PyTorch does not support in bfloat16 on a CPU
    latents = vae.encode(frames)
    assert latents.dtype == torch.float32
    assert (latents - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.02


@pytest.mark.parametrize("make", [wan, wan22])
@torch.inference_mode()
def test_wan_equals_diffusers_wan(make: object) -> None:
    model = make().eval()  # type: ignore[operator]
    vae = CausalVAE(model)
    frames = clip(vae)
    mode = model.encode(frames).latent_dist.mode()
    torch.testing.assert_close(vae.encode_raw(frames), mode, atol=1e-6, rtol=0)
    torch.testing.assert_close(vae.decode_raw(mode).clamp(-1, 1), model.decode(mode).sample, atol=1e-6, rtol=0)


@pytest.mark.parametrize("make", [wan, cosmos])
@torch.inference_mode()
def test_statistics_come_from_the_configuration(make: object) -> None:
    model = make().eval()  # type: ignore[operator]
    vae = CausalVAE(model)
    frames = clip(vae)
    mean = torch.tensor(model.config.latents_mean).view(1, 4, 1, 1, 1)
    std = torch.tensor(model.config.latents_std).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(vae.encode(frames), (vae.encode_raw(frames) - mean) / std, atol=1e-5, rtol=0)


def test_one_scaling_factor_applies_to_all_channels() -> None:
    model = hunyuan15()
    torch.testing.assert_close(CausalVAE(model).latents_std, torch.full((4,), 1 / model.config.scaling_factor))


def test_ltx_statistics_come_from_its_buffers() -> None:
    model = ltx()
    model.latents_mean.fill_(0.7)
    assert torch.equal(CausalVAE(model).latents_mean, torch.full((4,), 0.7))


def test_wan_decode_raw_does_not_clamp() -> None:
    """The gradient does not vanish where the output exceeds 1."""
    vae = CausalVAE(wan())
    with torch.no_grad():
        vae.vae.decoder.conv_out.bias.fill_(5.0)
    latents = torch.randn(1, 4, 1, 4, 4, requires_grad=True)
    vae.decode_raw(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOOKING_AHEAD)
@torch.inference_mode()
def test_decoders_that_look_ahead_refuse_to_stream_and_say_why(name: str) -> None:
    vae = CausalVAE(LOOKING_AHEAD[name]()).eval()
    assert not vae.causal
    with pytest.raises(TokenizerError, match="cannot stream: its"):
        vae.stream()
    latents = vae.encode(clip(vae, 2))
    changed = latents.clone()
    changed[:, :, -1] += 2.0
    early = (vae.decode(changed) - vae.decode(latents))[:, :, : 1 + vae.temporal_stride]
    if name != "cogvideox":  # frames depend on later latents of the same chunk only
        assert early.abs().max() > 1e-5  # the decoder does look ahead


def test_save_and_load(vae: CausalVAE, tmp_path: Path) -> None:
    vae.save(tmp_path)
    loaded = CausalVAE.load(tmp_path)
    assert loaded.fingerprint() == vae.fingerprint()
    with torch.inference_mode():
        frames = clip(vae, 1)
        assert torch.equal(loaded.encode(frames), vae.encode(frames))


def test_from_pretrained_reads_what_diffusers_wrote(tmp_path: Path) -> None:
    model = wan()
    model.save_pretrained(tmp_path / "vae")
    vae = CausalVAE.from_pretrained(str(tmp_path), kind="AutoencoderKLWan", subfolder="vae")
    assert vae.fingerprint() == CausalVAE(model).fingerprint()


@torch.inference_mode()
def test_wrong_frame_counts_and_sizes_are_refused(vae: CausalVAE) -> None:
    stride, side = vae.temporal_stride, vae.spatial_stride
    with pytest.raises(TokenizerError, match=f"cut it to {stride + 1} first"):
        vae.encode(torch.zeros(1, 3, 2 * stride, 16, 16))
    for size in ((16, 16 + side // 2), (16 + side // 2, 16)):
        with pytest.raises(TokenizerError, match=f"multiples of {side} pixels"):
            vae.encode(torch.zeros(1, 3, 1, *size))


@torch.inference_mode()
def test_strides_equal_those_of_the_network(vae: CausalVAE) -> None:
    """Measured on the output of the network."""
    encoded = vae.vae.encode(torch.zeros(1, 3, 1 + 2 * vae.temporal_stride, 16, 32)).latent_dist.mode()
    assert encoded.shape == (1, vae.channels, 3, 16 // vae.spatial_stride, 32 // vae.spatial_stride)


def test_cosmos_statistics_per_frame_are_pooled() -> None:
    """Its published statistics are given for each of the 16 latents of a clip; ours must hold for longer clips."""
    drawn = [0.3 * torch.randn(4000) + 1, 2 * torch.randn(4000) - 1]
    statistics = {
        name: [float(f(frame)) for frame in drawn] * 4 for name, f in (("mean", torch.mean), ("std", torch.std))
    }
    vae = CausalVAE(cosmos(latents_mean=statistics["mean"], latents_std=statistics["std"]))
    together = torch.cat(drawn)
    torch.testing.assert_close(vae.latents_mean, together.mean().expand(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.latents_std, together.std().expand(4), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_the_noise_level_that_ltx_decodes_with_is_zero() -> None:
    """From 0.9.1 on, the decoder takes the noise level of the latents."""
    vae = CausalVAE(ltx(timestep_conditioning=True)).eval()
    latents = torch.randn(2, 4, 3, 2, 2)
    raw = vae.denormalise(latents)
    theirs = vae.vae.decode(raw, torch.zeros(2)).sample.clamp(-1, 1)
    torch.testing.assert_close(vae.decode(latents), theirs, atol=1e-6, rtol=0)
    stream = vae.stream()
    streamed = torch.cat([stream.push(latent) for latent in latents.split(1, dim=2)], dim=2)
    torch.testing.assert_close(streamed, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["ltx", "cosmos"])
@torch.inference_mode()
def test_published_variants_stream(name: str) -> None:
    """LTX with residual upsampling, Cosmos with attention in its up blocks and a time stride of 8 from patches of 4."""
    variants = {
        "ltx": lambda: ltx(
            upsample_residual=(True,) * 3,
            upsample_factor=(2,) * 3,
            decoder_block_out_channels=(8, 16, 32),
            spatio_temporal_scaling=(True,) * 3,
            decoder_spatio_temporal_scaling=(True,) * 3,
        ),
        "cosmos": lambda: cosmos(
            attention_resolutions=(4,), patch_size=4, temporal_compression_ratio=8, patch_type="rearrange"
        ),
    }
    vae = CausalVAE(variants[name]()).eval()
    latents = torch.randn(1, 4, 4, 2, 2)
    stream = vae.stream()
    streamed = torch.cat([stream.push(part) for part in latents.split([1, 2, 1], dim=2)], dim=2)
    torch.testing.assert_close(streamed, vae.decode(latents), atol=1e-5, rtol=0)


def test_a_missing_vae_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"cannot be loaded as AutoencoderKLWan.*that holds one in vae/"):
        CausalVAE.from_pretrained(str(tmp_path), subfolder="vae")


def test_the_fingerprint_changes_with_weights_statistics_and_type() -> None:
    vae = CausalVAE(wan())
    fingerprints = [vae.fingerprint()]
    vae.set_statistics(torch.zeros(4), torch.ones(4))
    fingerprints.append(vae.fingerprint())
    with torch.no_grad():
        next(vae.vae.parameters()).view(-1)[0] += 1
    fingerprints.append(vae.fingerprint())
    vae.vae.to(torch.bfloat16)
    fingerprints.append(vae.fingerprint())
    assert len(set(fingerprints)) == 4


def test_unchecked_models_and_strides_are_refused() -> None:
    with pytest.raises(TokenizerError, match="causality of Linear was not checked"):
        CausalVAE(nn.Linear(1, 1))
    with pytest.raises(TokenizerError, match="temporal stride must be 4, not 2"):
        CausalVAE(wan(temperal_downsample=[False, True]))
    with pytest.raises(TokenizerError, match="latent statistics need 6 channels"):
        CausalVAE(wan(z_dim=6))
