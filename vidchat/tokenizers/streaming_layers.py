"""Streaming encoders and decoders of causal VAEs, whose layers keep their state between pushes.

In diffusers, LTX-Video, Cosmos and HunyuanVideo 1.5 encode and decode whole clips only. Here a stream has its own copy
of the network, which shares the weights, and each layer that looks back keeps its past: a convolution its last inputs,
attention over time its keys and values. Layers that treat the first frame of a clip differently do so in the first push
only. The cost of a push does not depend on the length of the stream. Memory does not grow either, with one exception:
attention over time, which Cosmos and HunyuanVideo 1.5 have on the coarsest grid, keeps all keys and values, because the
result would differ otherwise. `look_back` limits them.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos
from diffusers.models.autoencoders import autoencoder_kl_hunyuanvideo15 as hunyuan
from diffusers.models.autoencoders import autoencoder_kl_ltx as ltx
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.tokenizers.weights import TokenizerError

Layer = Callable[..., Tensor]


def make_streaming(network: nn.Module, look_back: int | None = None) -> nn.Module:
    """Returns a streaming copy of an encoder or decoder: it shares the weights and has its own state.

    Args:
        network: The encoder or decoder of one of the VAEs named above.
        look_back: Number of earlier latents that attention over time sees; `None` is all of them, which is exact.

    Raises:
        TokenizerError: the network normalises over time, so it is not causal.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    own = copy.deepcopy(network, shared)
    for module in own.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups != 1:
            raise TokenizerError("a network whose group norms run over time cannot stream; use a causal VAE")
        # A weak reference: a cycle would keep a finished stream's memory until the next garbage collection.
        layer = LAYERS[type(module)](weakref.proxy(module), look_back) if type(module) in LAYERS else None
        if layer is not None:
            module.forward = layer  # nn.Module calls this attribute; the module belongs to this stream alone
    return own


def _past(frames: int, stride: int = 1) -> Callable[[Tensor], Tensor]:
    """Returns a function that prepends a convolution's past inputs to x (B, C, t, h, w).

    In the first call these are `frames` copies of the first input, later the `frames + 1 - stride` inputs that the next
    window still covers.
    """
    cached: Tensor | None = None
    count = frames + 1 - stride

    def with_past(x: Tensor) -> Tensor:
        nonlocal cached
        past = x[:, :, :1].expand(-1, -1, frames, -1, -1) if cached is None else cached
        extended = torch.cat([past, x], dim=2)
        cached = extended[:, :, extended.shape[2] - count :].clone()  # a slice would keep all of it
        return extended

    return with_past if frames else lambda x: x


def _first_call() -> Callable[[], bool]:
    """Returns a function that returns true in its first call only."""
    calls = iter([True])
    return lambda: next(calls, False)


def _ltx_convolution(module: Any, _: int | None) -> Layer:
    with_past = _past(module.kernel_size[0] - 1, module.conv.stride[0])
    return lambda x: module.conv(with_past(x))


def _ltx_downsampler(module: Any, _: int | None) -> Layer:
    first_call, (time, rows, cols) = _first_call(), module.stride

    def fold(x: Tensor) -> Tensor:
        return rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=rows, r=cols)

    def forward(x: Tensor) -> Tensor:
        if first_call():
            x = torch.cat([x[:, :, : time - 1], x], dim=2)
        return fold(module.conv(x)) + fold(x).unflatten(1, (-1, module.group_size)).mean(2)

    return forward


def _ltx_upsampler(module: Any, _: int | None) -> Layer:
    first_call, (time, rows, cols) = _first_call(), module.stride
    repeats = time * rows * cols // module.upscale_factor

    def spread(x: Tensor) -> Tensor:
        return rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=rows, r=cols)

    def forward(x: Tensor) -> Tensor:
        start = time - 1 if first_call() else 0
        out = spread(module.conv(x))[:, :, start:]
        return out + spread(x).repeat(1, repeats, 1, 1, 1)[:, :, start:] if module.residual else out

    return forward


def _cosmos_convolution(module: Any, _: int | None) -> Layer:
    # With a stride of 2, CosmosDownsample3d prepends one more frame in the first push.
    with_past = _past(module.temporal_pad)

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(with_past(x), (*module.spatial_pad, 0, 0), mode=module.pad_mode, value=0.0)
        return F.conv3d(padded, module.weight, module.bias, module.stride, 0, module.dilation)

    return forward


def _cosmos_downsample(module: Any, _: int | None) -> Layer:
    first_call, original = _first_call(), cosmos.CosmosDownsample3d.forward

    def forward(x: Tensor) -> Tensor:
        if first_call() or not module.temporal_downsample:
            return original(module, x)
        if module.spatial_downsample:
            x = F.pad(x, (0, 1, 0, 1, 0, 0))
            x = module.conv1(x) + F.avg_pool3d(x, (1, 2, 2))
        out: Tensor = module.conv3(module.conv2(x) + F.avg_pool3d(x, (2, 1, 1)))
        return out

    return forward


def _cosmos_patcher(module: Any, _: int | None) -> Layer:
    first_call, original = _first_call(), cosmos.CosmosPatchEmbed3d.forward

    def forward(x: Tensor) -> Tensor:
        if first_call():
            return original(module, x)
        # The original repeats a clip's first frame to fill a patch; here that patch is dropped.
        return original(module, torch.cat([x[:, :, :1], x], dim=2))[:, :, 1:]

    return forward


def _cosmos_upsample(module: Any, _: int | None) -> Layer:
    first_call = _first_call()

    def forward(x: Tensor) -> Tensor:
        if not module.spatial_upsample and not module.temporal_upsample:
            return x
        if module.temporal_upsample:
            x = x.repeat_interleave(2, dim=2)[:, :, int(first_call()) :]
            x = module.conv1(x) + x
        if module.spatial_upsample:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = module.conv2(x) + x
        out: Tensor = module.conv3(x)
        return out

    return forward


def _cosmos_attention(module: Any, look_back: int | None) -> Layer | None:
    if not isinstance(module.processor, cosmos.CosmosTemporalAttentionProcessor2_0):
        return None
    heads = module.num_attention_heads
    attend = _attention(lambda x: rearrange(x, "b (n c) t h w -> (b h w) n t c", n=heads), look_back)

    def forward(x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        normed = module.norm(x)
        out = attend(module.to_q(normed), module.to_k(normed), module.to_v(normed), tokens_per_frame=1)
        out = rearrange(out, "(b h w) n t c -> b (n c) t h w", h=x.shape[3], w=x.shape[4])
        return x + module.to_out[1](module.to_out[0](out))

    return forward


def _cosmos_unpatcher(module: Any, _: int | None) -> Layer:
    first_call, original = _first_call(), cosmos.CosmosUnpatcher3d.forward

    def forward(x: Tensor) -> Tensor:
        if first_call():
            return original(module, x)
        # The original drops the frames of a clip's first patch; here an input frame is prepended for it to drop.
        return original(module, torch.cat([x[:, :, :1], x], dim=2))[:, :, 1:]

    return forward


def _hunyuan_convolution(module: Any, _: int | None) -> Layer:
    *spatial, before, _ = module.time_causal_padding
    with_past = _past(before)
    return lambda x: module.conv(F.pad(with_past(x), (*spatial, 0, 0), mode=module.pad_mode))


def _hunyuan_downsample(module: Any, _: int | None) -> Layer:
    first_call, original = _first_call(), hunyuan.HunyuanVideo15Downsample.forward

    def forward(x: Tensor) -> Tensor:
        if first_call() or not module.add_temporal_downsample:
            return original(module, x)
        out, shortcut = (
            rearrange(values, "b c (t p) (h q) (w r) -> b (p q r c) t h w", p=2, q=2, r=2)
            for values in (module.conv(x), x)
        )
        return out + shortcut.unflatten(1, (-1, module.group_size)).mean(2)

    return forward


def _hunyuan_upsample(module: Any, _: int | None) -> Layer:
    first_call, original = _first_call(), hunyuan.HunyuanVideo15Upsample.forward

    def forward(x: Tensor) -> Tensor:
        if first_call() or not module.add_temporal_upsample:
            return original(module, x)
        out, shortcut = (
            rearrange(values, "b (p q r c) t h w -> b c (t p) (h q) (w r)", p=2, q=2, r=2)
            for values in (module.conv(x), x)
        )
        return out + shortcut.repeat_interleave(module.repeats, dim=1)

    return forward


def _hunyuan_attention(module: Any, look_back: int | None) -> Layer:
    attend = _attention(lambda x: rearrange(x, "b c t h w -> b 1 (t h w) c"), look_back)

    def forward(x: Tensor) -> Tensor:
        normed = module.norm(x)
        height, width = x.shape[3:]
        out = attend(module.to_q(normed), module.to_k(normed), module.to_v(normed), tokens_per_frame=height * width)
        return x + module.proj_out(rearrange(out, "b 1 (t h w) c -> b c t h w", h=height, w=width))

    return forward


def _attention(heads: Callable[[Tensor], Tensor], look_back: int | None) -> Callable[..., Tensor]:
    """Returns a function that attends from each frame to itself and to the frames before it, in all pushes."""
    cached: tuple[Tensor, Tensor] | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, tokens_per_frame: int) -> Tensor:
        nonlocal cached
        query, key, value = heads(query), heads(key), heads(value)
        if cached is not None:
            key, value = torch.cat([cached[0], key], dim=2), torch.cat([cached[1], value], dim=2)
        limit = key.shape[2] if look_back is None else look_back * tokens_per_frame
        start = max(0, key.shape[2] - limit)
        cached = key[:, :, start:].clone(), value[:, :, start:].clone()
        out, end = [], key.shape[2] - query.shape[2]
        for frame in query.split(tokens_per_frame, dim=2):
            visible = slice(max(0, end - limit), end + tokens_per_frame)
            out.append(F.scaled_dot_product_attention(frame, key[:, :, visible], value[:, :, visible]))
            end += tokens_per_frame
        return torch.cat(out, dim=2)

    return attend


LAYERS: dict[type[nn.Module], Callable[[Any, int | None], Layer | None]] = {
    ltx.LTXVideoCausalConv3d: _ltx_convolution,
    ltx.LTXVideoDownsampler3d: _ltx_downsampler,
    ltx.LTXVideoUpsampler3d: _ltx_upsampler,
    cosmos.CosmosCausalConv3d: _cosmos_convolution,
    cosmos.CosmosDownsample3d: _cosmos_downsample,
    cosmos.CosmosUpsample3d: _cosmos_upsample,
    cosmos.CosmosCausalAttention: _cosmos_attention,
    cosmos.CosmosPatchEmbed3d: _cosmos_patcher,
    cosmos.CosmosUnpatcher3d: _cosmos_unpatcher,
    hunyuan.HunyuanVideo15CausalConv3d: _hunyuan_convolution,
    hunyuan.HunyuanVideo15Downsample: _hunyuan_downsample,
    hunyuan.HunyuanVideo15Upsample: _hunyuan_upsample,
    hunyuan.HunyuanVideo15AttnBlock: _hunyuan_attention,
}
"""Layers that look back or treat a clip's first frame differently; all others process each frame independently."""
