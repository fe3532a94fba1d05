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
from vidchat.tokenizers.causal_streams import WanCache
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
def test_latents_do_not_depend_on_later_pictures(vae: CausalVAE) -> None:
    frames = clip(vae)
    latents = vae.encode(frames)
    changed = frames.clone()
    changed[:, :, 1 + 2 * vae.temporal_stride :] += 0.5
    difference = (vae.encode(changed) - latents).abs().amax((0, 1, 3, 4))
    assert difference[:3].max() < 1e-5
    assert difference[3] > 1e-4


@torch.inference_mode()
def test_pictures_do_not_depend_on_later_latents(vae: CausalVAE) -> None:
    latents = vae.encode(clip(vae))
    changed = latents.clone()
    changed[:, :, 3] += 2.0
    decoded = (vae.decode_raw(changed) - vae.decode_raw(latents)).abs().amax((0, 1, 3, 4))
    known = 1 + 2 * vae.temporal_stride
    assert decoded[:known].max() < 1e-5
    assert decoded[known:].max() > 1e-4


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [3, 1, 1], [1, 2, 2], [5]])
@torch.inference_mode()
def test_streaming_equals_decoding_the_whole(vae: CausalVAE, sizes: list[int]) -> None:
    latents = torch.randn(2, vae.channels, 5, *vae.grid((16, 16)))
    stream, other = vae.stream(), vae.stream()
    parts = []
    for part in latents.split(sizes, dim=2):
        parts.append(stream.push(part))
        other.push(torch.randn_like(part))  # a second stream in between changes nothing
    stride = vae.temporal_stride
    assert [part.shape[2] for part in parts] == [1 + stride * (sizes[0] - 1), *(stride * n for n in sizes[1:])]
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latents), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_stream_does_not_keep_the_answer(vae: CausalVAE) -> None:
    """What is kept after 4 chunks is what is kept after 8, but for attention over time, which is exact only so."""
    latents = torch.randn(1, vae.channels, 8, *vae.grid((16, 16)))
    stream, kept = vae.stream(), []
    for count, latent in enumerate(latents.split(1, dim=2), 1):
        stream.push(latent)
        if count in (4, 8):
            kept.append(remembered(stream))
    looks_back = {"AutoencoderKLCosmos": 1, "AutoencoderKLHunyuanVideo15": 1}.get(type(vae.vae).__name__, 0)
    attended = 2 * 4 * looks_back * stream_width(vae) * math.prod(vae.grid((16, 16)))
    assert kept[0] > 0
    assert kept[1] - kept[0] == attended


@pytest.mark.parametrize("name", ["cosmos", "hunyuan15"])
@torch.inference_mode()
def test_attention_over_time_may_look_back_less_far(name: str) -> None:
    """With a limit nothing grows; up to the limit, and however it is cut, the frames are the same."""
    vae = CausalVAE(STREAMING[name](), look_back=2).eval()
    latents = torch.randn(1, 4, 7, *vae.grid((16, 16)))
    cut = []
    for sizes in ([1] * 7, [3, 1, 3]):
        stream, kept, parts = vae.stream(), [], []
        for part in latents.split(sizes, dim=2):
            parts.append(stream.push(part))
            kept.append(remembered(stream))
        cut.append(torch.cat(parts, dim=2))
    torch.testing.assert_close(cut[0], cut[1], atol=1e-5, rtol=0)
    assert kept[0] == kept[-1], "three latents fill it"
    whole, same = vae.decode(latents), 1 + 2 * vae.temporal_stride
    torch.testing.assert_close(cut[0][:, :, :same], whole[:, :, :same], atol=1e-5, rtol=0)
    assert (cut[0] - whole)[:, :, same + vae.temporal_stride :].abs().max() > 1e-6


def test_a_finished_stream_is_gone_at_once(vae: CausalVAE) -> None:
    """Its memory is not left to the search for cycles, which may come late."""
    stream = vae.stream()
    stream.push(torch.randn(1, vae.channels, 1, *vae.grid((16, 16))))
    known = weakref.ref(stream.cache)
    gc.disable()
    try:
        del stream
        assert known() is None
    finally:
        gc.enable()


def remembered(stream: Any) -> int:
    """Values that a stream holds beside the weights: those that are reachable from it and are no parameters."""
    if isinstance(stream.cache, WanCache):
        return sum(kept.numel() for kept in stream.cache.features if isinstance(kept, Tensor))
    seen: dict[int, Tensor] = {}
    for module in stream.cache.decoder.modules():
        cells = [module.forward] if "forward" in vars(module) else []
        while cells:
            for cell in cells.pop().__closure__ or ():
                value = cell.cell_contents
                if callable(value) and hasattr(value, "__closure__"):
                    cells.append(value)
                for tensor in value if isinstance(value, tuple) else (value,):
                    if isinstance(tensor, Tensor):
                        seen[id(tensor)] = tensor
    return sum(tensor.numel() for tensor in seen.values())


def stream_width(vae: CausalVAE) -> int:
    """Channels of the decoder's mid block, where there is attention."""
    settings = dict(vae.vae.config)
    return int((settings.get("decode_block_out_channels") or settings.get("block_out_channels") or [0])[-1])


@torch.inference_mode()
def test_half_precision_in_single_precision_out(vae: CausalVAE) -> None:
    """The network computes in its weights' type; latents, frames and statistics stay the caller's."""
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
        return  # its encoder pools, which PyTorch does not do in bfloat16 on a CPU
    latents = vae.encode(frames)
    assert latents.dtype == torch.float32
    assert (latents - exact).abs().mean() < 0.1 * exact.abs().mean() + 0.02


@pytest.mark.parametrize("make", [wan, wan22])
@torch.inference_mode()
def test_wan_is_diffusers_wan(make: object) -> None:
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
        frames = clip(vae, 1)
        assert torch.equal(loaded.encode(frames), vae.encode(frames))


def test_from_pretrained_reads_what_diffusers_wrote(tmp_path: Path) -> None:
    model = wan()
    model.save_pretrained(tmp_path / "vae")
    vae = CausalVAE.from_pretrained(str(tmp_path), kind="AutoencoderKLWan", subfolder="vae")
    assert vae.fingerprint() == CausalVAE(model).fingerprint()


@torch.inference_mode()
def test_frame_counts_and_sizes_are_not_cut_in_silence(vae: CausalVAE) -> None:
    stride, side = vae.temporal_stride, vae.spatial_stride
    with pytest.raises(TokenizerError, match=f"cut it to {stride + 1} first"):
        vae.encode(torch.zeros(1, 3, 2 * stride, 16, 16))
    for size in ((16, 16 + side // 2), (16 + side // 2, 16)):
        with pytest.raises(TokenizerError, match=f"multiples of {side} pixels"):
            vae.encode(torch.zeros(1, 3, 1, *size))


@torch.inference_mode()
def test_strides_are_those_of_the_network(vae: CausalVAE) -> None:
    """Counted where the network is asked: one more chunk of frames is one more latent."""
    encoded = vae.vae.encode(torch.zeros(1, 3, 1 + 2 * vae.temporal_stride, 16, 32)).latent_dist.mode()
    assert encoded.shape == (1, vae.channels, 3, 16 // vae.spatial_stride, 32 // vae.spatial_stride)


def test_cosmos_statistics_for_each_frame_become_those_of_all() -> None:
    """Its published statistics are those of 16 latents of a clip, one after the other; ours must serve longer ones."""
    drawn = [0.3 * torch.randn(4000) + 1, 2 * torch.randn(4000) - 1]
    told = {name: [float(f(frame)) for frame in drawn] * 4 for name, f in (("mean", torch.mean), ("std", torch.std))}
    vae = CausalVAE(cosmos(latents_mean=told["mean"], latents_std=told["std"]))
    together = torch.cat(drawn)
    torch.testing.assert_close(vae.latents_mean, together.mean().expand(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(vae.latents_std, together.std().expand(4), atol=1e-3, rtol=0)


@torch.inference_mode()
def test_ltx_with_a_noise_level_is_told_that_there_is_none() -> None:
    """From 0.9.1 on the decoder wants the level of noise in the latents."""
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
def test_variants_of_the_published_kind_stream_too(name: str) -> None:
    """LTX with residual upsampling, Cosmos with attention in its up blocks and a time stride of 8 from patches of 4."""
    made = {
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
    vae = CausalVAE(made[name]()).eval()
    latents = torch.randn(1, 4, 4, 2, 2)
    stream = vae.stream()
    streamed = torch.cat([stream.push(part) for part in latents.split([1, 2, 1], dim=2)], dim=2)
    torch.testing.assert_close(streamed, vae.decode(latents), atol=1e-5, rtol=0)


def test_a_vae_that_cannot_be_had_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"cannot be loaded as AutoencoderKLWan.*that holds one in vae/"):
        CausalVAE.from_pretrained(str(tmp_path), subfolder="vae")


def test_the_fingerprint_changes_with_weights_statistics_and_type() -> None:
    vae = CausalVAE(wan())
    seen = [vae.fingerprint()]
    vae.set_statistics(torch.zeros(4), torch.ones(4))
    seen.append(vae.fingerprint())
    with torch.no_grad():
        next(vae.vae.parameters()).view(-1)[0] += 1
    seen.append(vae.fingerprint())
    vae.vae.to(torch.bfloat16)
    seen.append(vae.fingerprint())
    assert len(set(seen)) == 4


def test_unchecked_models_and_strides_are_refused() -> None:
    with pytest.raises(TokenizerError, match="Linear was not checked for causality"):
        CausalVAE(nn.Linear(1, 1))
    with pytest.raises(TokenizerError, match="temporal stride must be that, not 2"):
        CausalVAE(wan(temperal_downsample=[False, True]))
    with pytest.raises(TokenizerError, match="latent statistics need 6 channels"):
        CausalVAE(wan(z_dim=6))
