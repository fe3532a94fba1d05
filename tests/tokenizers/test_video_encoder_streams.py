"""Frames that are pushed in pieces of any size give the latents of the whole video, with constant memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tokenizers.test_causal import LOOKING_AHEAD, STREAMING, cosmos, ltx
from tests.tokenizers.test_packed import stacked, tiny
from vidchat.tokenizers.causal import CausalVAE
from vidchat.tokenizers.packed import PackedVAE
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError

MAKERS: dict[str, Callable[[], VideoTokenizer]] = {
    **{name: lambda make=make: CausalVAE(make()) for name, make in STREAMING.items()},  # type: ignore[misc]
    "packed": lambda: PackedVAE(tiny()),
    "stacked": stacked,
    "ltx with a decoder that looks ahead": lambda: CausalVAE(ltx(decoder_causal=False)),
}
VARIANTS = {
    "ltx": lambda: ltx(
        down_block_types=("LTXVideo095DownBlock3D",) * 3,
        block_out_channels=(8, 16, 16, 16),
        downsample_type=("spatial", "temporal", "spatiotemporal"),
        spatio_temporal_scaling=(True,) * 3,
        decoder_spatio_temporal_scaling=(True,) * 3,
    ),
    "cosmos": lambda: cosmos(
        attention_resolutions=(4,), patch_size=4, temporal_compression_ratio=8, patch_type="rearrange"
    ),
}


@pytest.fixture(params=MAKERS)
def vae(request: pytest.FixtureRequest) -> VideoTokenizer:
    torch.manual_seed(0)
    tokenizer: VideoTokenizer = MAKERS[request.param]().eval()
    tokenizer.set_statistics(torch.linspace(-1, 1, tokenizer.channels), torch.linspace(0.5, 2, tokenizer.channels))
    return tokenizer


def video(vae: VideoTokenizer, chunks: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 1 + vae.temporal_stride * chunks, 16, 16) * 2 - 1


def push_sizes(vae: VideoTokenizer, count: int) -> dict[str, list[int]]:
    """Sizes of the pushes of `count` frames, in four ways."""
    stride = vae.temporal_stride
    return {
        "a frame at a time": [1] * count,
        "the first, then chunks": [1] + [stride] * (count // stride),
        "across the chunks": [3] * (count // 3) + [count % 3] * (count % 3 > 0),
        "all at once": [count],
    }


@torch.inference_mode()
def test_pushes_give_the_latents_of_the_whole_video(vae: VideoTokenizer) -> None:
    frames = video(vae, chunks=4, batch=2)
    whole = vae.encode(frames)
    for name, sizes in push_sizes(vae, frames.shape[2]).items():
        stream, other, parts, pushed = vae.encoder_stream(), vae.encoder_stream(), [], 0
        for part in frames.split(sizes, dim=2):
            parts.append(stream.push(part))
            other.push(torch.randn_like(part))  # a second stream must not interfere
            pushed += part.shape[2]
            assert sum(latents.shape[2] for latents in parts) == 1 + (pushed - 1) // vae.temporal_stride, name
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert whole[:, :, 1:].std() > 1e-2


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_published_variants_stream(name: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(VARIANTS[name]()).eval()
    frames = torch.rand(1, 3, 1 + 3 * vae.temporal_stride, 32, 32) * 2 - 1
    stream, whole = vae.encoder_stream(), vae.encode(frames)
    sizes = [1, vae.temporal_stride, 2 * vae.temporal_stride]
    parts = torch.cat([stream.push(part) for part in frames.split(sizes, dim=2)], dim=2)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_memory_of_a_stream_does_not_grow(vae: VideoTokenizer) -> None:
    """After 8 chunks it is that after 4 chunks, except for the keys and values of attention over time."""
    stream, sizes = vae.encoder_stream(), []
    for count, frame in enumerate(video(vae, chunks=8).split(1, dim=2)):
        stream.push(frame)
        if count in (4 * vae.temporal_stride, 8 * vae.temporal_stride):
            sizes.append(sum(tensor.numel() for tensor in state_tensors(stream)))
    kind = type(vae.vae).__name__ if isinstance(vae, CausalVAE) else ""
    width = {"AutoencoderKLCosmos": 8, "AutoencoderKLHunyuanVideo15": 16}.get(kind, 0)
    height, cols = vae.grid((16, 16))
    assert sizes[1] - sizes[0] == 4 * 2 * width * height * cols
    if isinstance(vae, CausalVAE):
        assert sizes[0] > 0


@pytest.mark.parametrize("name", ["cosmos", "hunyuan15"])
@torch.inference_mode()
def test_look_back_bounds_the_memory_of_attention_over_time(name: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(STREAMING[name](), look_back=2).eval()
    frames = video(vae, chunks=6)
    stream, sizes, parts = vae.encoder_stream(), [], []
    for frame in frames.split([1] + [vae.temporal_stride] * 6, dim=2):
        parts.append(stream.push(frame))
        sizes.append(sum(tensor.numel() for tensor in state_tensors(stream)))
    assert sizes[2] == sizes[-1]
    streamed, whole = torch.cat(parts, dim=2), vae.encode(frames)
    torch.testing.assert_close(streamed[:, :, :3], whole[:, :, :3], atol=1e-5, rtol=0)
    assert (streamed - whole)[:, :, 4:].abs().max() > 1e-6


def test_a_deleted_stream_is_freed_at_once(vae: VideoTokenizer) -> None:
    """Its memory does not wait for garbage collection."""
    stream = vae.encoder_stream()
    stream.push(video(vae, chunks=0))
    reference = weakref.ref(getattr(stream, "encoder", stream))
    gc.disable()
    try:
        del stream
        assert reference() is None
    finally:
        gc.enable()


def test_a_vae_in_half_precision_returns_single_precision() -> None:
    torch.manual_seed(0)
    vae = CausalVAE(STREAMING["wan"]()).eval()
    frames = video(vae, chunks=2)
    exact = vae.encode(frames)
    vae.vae.to(torch.bfloat16)
    latents = vae.encoder_stream().push(frames)
    assert latents.dtype == torch.float32
    assert (latents - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (LOOKING_AHEAD["hunyuan"], "group norms"),
        (LOOKING_AHEAD["cogvideox"], "group norms"),
        (lambda: ltx(encoder_causal=False), "encoder_causal=false"),
    ],
)
@torch.inference_mode()
def test_encoders_that_look_ahead_refuse_to_stream_and_say_why(make: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(make()).eval()
    with pytest.raises(TokenizerError, match=f"cannot encode a stream: .*{reason}"):
        vae.encoder_stream()
    frames = video(vae, chunks=2)
    changed = frames.clone()
    changed[:, :, -1] = -changed[:, :, -1]
    assert (vae.encode(changed) - vae.encode(frames))[:, :, :-1].abs().max() > 1e-6  # the encoder does look ahead


def test_a_class_without_an_encoder_stream_refuses_to_encode_a_stream() -> None:
    class Own(StackedVAE):
        encoder_stream = VideoTokenizer.encoder_stream

    with pytest.raises(TokenizerError, match="Own defines no encoder_stream"):
        Own(6, patch=2, widths=(8,), encoder_blocks=(1,), decoder_blocks=(1,)).encoder_stream()


def test_wrong_frames_are_refused(vae: VideoTokenizer) -> None:
    side = vae.spatial_stride
    with pytest.raises(TokenizerError, match=f"multiples of {side} pixels"):
        vae.encoder_stream().push(torch.zeros(1, 3, 1, 16, 16 + side // 2))
    with pytest.raises(TokenizerError, match="batch, 3, time"):
        vae.encoder_stream().push(torch.zeros(1, 1, 3, 16, 16))


def state_tensors(stream: Any) -> list[Tensor]:
    """Tensors of a stream's state: those that are reachable from it and belong to no module."""
    weights, tensors, queue, visited = set(), [], [stream], set()
    while queue:
        value = queue.pop()
        if id(value) in visited or isinstance(value, VideoTokenizer | type):
            continue
        visited.add(id(value))
        if isinstance(value, Tensor):
            tensors.append(value)
            continue
        if isinstance(value, nn.Module):
            weights |= {id(tensor) for tensor in (*value.parameters(), *value.buffers())}
            queue += [module.forward for module in value.modules() if "forward" in vars(module)]
        elif hasattr(value, "__closure__"):
            queue += [cell.cell_contents for cell in value.__closure__ or ()]
        elif isinstance(value, list | tuple):
            queue += value
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("vidchat"):
            queue += vars(value).values()
    return [tensor for tensor in tensors if id(tensor) not in weights]
