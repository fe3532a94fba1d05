"""Frames that arrive in any cuts become the latents of the whole video, at flat cost."""

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
    "ltx of a decoder that looks ahead": lambda: CausalVAE(ltx(decoder_causal=False)),
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
    made: VideoTokenizer = MAKERS[request.param]().eval()
    made.set_statistics(torch.linspace(-1, 1, made.channels), torch.linspace(0.5, 2, made.channels))
    return made


def video(vae: VideoTokenizer, chunks: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 1 + vae.temporal_stride * chunks, 16, 16) * 2 - 1


def cuts(vae: VideoTokenizer, count: int) -> dict[str, list[int]]:
    """Sizes of the pushes of `count` frames, four ways."""
    stride = vae.temporal_stride
    return {
        "a frame at a time": [1] * count,
        "the first, then chunks": [1] + [stride] * (count // stride),
        "across the chunks": [3] * (count // 3) + [count % 3] * (count % 3 > 0),
        "all at once": [count],
    }


@torch.inference_mode()
def test_pushes_give_the_latents_of_the_whole(vae: VideoTokenizer) -> None:
    frames = video(vae, chunks=4, batch=2)
    whole = vae.encode(frames)
    for name, sizes in cuts(vae, frames.shape[2]).items():
        stream, other, parts, seen = vae.encoder_stream(), vae.encoder_stream(), [], 0
        for part in frames.split(sizes, dim=2):
            parts.append(stream.push(part))
            other.push(torch.randn_like(part))  # a second stream in between changes nothing
            seen += part.shape[2]
            assert sum(latents.shape[2] for latents in parts) == 1 + (seen - 1) // vae.temporal_stride, name
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert whole[:, :, 1:].std() > 1e-2


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_variants_of_the_published_kind_stream_too(name: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(VARIANTS[name]()).eval()
    frames = torch.rand(1, 3, 1 + 3 * vae.temporal_stride, 32, 32) * 2 - 1
    stream, whole = vae.encoder_stream(), vae.encode(frames)
    sizes = [1, vae.temporal_stride, 2 * vae.temporal_stride]
    parts = torch.cat([stream.push(part) for part in frames.split(sizes, dim=2)], dim=2)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_stream_does_not_keep_the_video(vae: VideoTokenizer) -> None:
    """What is kept after 4 chunks is what is kept after 8, but for attention over time, which is exact only so."""
    stream, kept = vae.encoder_stream(), []
    for count, frame in enumerate(video(vae, chunks=8).split(1, dim=2)):
        stream.push(frame)
        if count in (4 * vae.temporal_stride, 8 * vae.temporal_stride):
            kept.append(sum(tensor.numel() for tensor in remembered(stream)))
    kind = type(vae.vae).__name__ if isinstance(vae, CausalVAE) else ""
    width = {"AutoencoderKLCosmos": 8, "AutoencoderKLHunyuanVideo15": 16}.get(kind, 0)
    height, cols = vae.grid((16, 16))
    assert kept[1] - kept[0] == 4 * 2 * width * height * cols
    if isinstance(vae, CausalVAE):
        assert kept[0] > 0


@pytest.mark.parametrize("name", ["cosmos", "hunyuan15"])
@torch.inference_mode()
def test_with_look_back_nothing_grows(name: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(STREAMING[name](), look_back=2).eval()
    frames = video(vae, chunks=6)
    stream, kept, parts = vae.encoder_stream(), [], []
    for frame in frames.split([1] + [vae.temporal_stride] * 6, dim=2):
        parts.append(stream.push(frame))
        kept.append(sum(tensor.numel() for tensor in remembered(stream)))
    assert kept[2] == kept[-1]
    streamed, whole = torch.cat(parts, dim=2), vae.encode(frames)
    torch.testing.assert_close(streamed[:, :, :3], whole[:, :, :3], atol=1e-5, rtol=0)
    assert (streamed - whole)[:, :, 4:].abs().max() > 1e-6


def test_a_finished_stream_is_gone_at_once(vae: VideoTokenizer) -> None:
    """Its memory is not left to the search for cycles, which may come late."""
    stream = vae.encoder_stream()
    stream.push(video(vae, chunks=0))
    known = weakref.ref(getattr(stream, "encoder", stream))
    gc.disable()
    try:
        del stream
        assert known() is None
    finally:
        gc.enable()


def test_half_precision_in_single_precision_out() -> None:
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
def test_encoders_that_look_ahead_say_why_they_cannot_stream(make: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    vae = CausalVAE(make()).eval()
    with pytest.raises(TokenizerError, match=f"cannot encode a stream: .*{reason}"):
        vae.encoder_stream()
    frames = video(vae, chunks=2)
    changed = frames.clone()
    changed[:, :, -1] = -changed[:, :, -1]
    assert (vae.encode(changed) - vae.encode(frames))[:, :, :-1].abs().max() > 1e-6  # the claim is true


def test_a_tokenizer_of_ones_own_may_do_without() -> None:
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


def remembered(stream: Any) -> list[Tensor]:
    """The tensors that a stream holds beside the weights: all that can be reached from it and belong to no module."""
    weights, found, todo, seen = set(), [], [stream], set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, VideoTokenizer | type):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found.append(thing)
            continue
        if isinstance(thing, nn.Module):
            weights |= {id(tensor) for tensor in (*thing.parameters(), *thing.buffers())}
            todo += [module.forward for module in thing.modules() if "forward" in vars(module)]
        elif hasattr(thing, "__closure__"):
            todo += [cell.cell_contents for cell in thing.__closure__ or ()]
        elif isinstance(thing, list | tuple):
            todo += thing
        elif hasattr(thing, "__dict__") and type(thing).__module__.startswith("vidchat"):
            todo += vars(thing).values()
    return [tensor for tensor in found if id(tensor) not in weights]
