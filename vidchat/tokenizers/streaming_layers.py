"""Causal VAEs' encoders and decoders that continue where they stopped: the past of each layer, kept from push to push.

diffusers' LTX-Video, Cosmos and HunyuanVideo 1.5 encode and decode whole clips only. Here a stream has a network of its
own, which shares the weights and in which every layer that looks back keeps what it looks back at: a convolution its
last inputs, attention over time its keys and values. Layers that treat the clip's first frame apart do so in the first
push only. So a push costs what its own frames cost, and what is kept does not grow; only attention over time, which
Cosmos and HunyuanVideo 1.5 have on the smallest grid, keeps keys and values of all that came before, as exactness
demands, unless `look_back` limits it.
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
    """A copy of an encoder or decoder that shares its weights and has its own memory; it starts at a clip's beginning.

    Args:
        network: The encoder or decoder of one of the VAEs named above.
        look_back: Number of earlier latents that attention over time sees; `None` is all, which alone is exact.

    Raises:
        TokenizerError: it has normalisation over time, which no memory makes causal.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    own = copy.deepcopy(network, shared)
    for module in own.modules():
        if isinstance(module, nn.GroupNorm) and module.num_groups != 1:
            raise TokenizerError("a network whose group norms run over time cannot continue where it stopped")
        # A layer knows its module weakly: a cycle would keep a finished stream's memory until Python looks for cycles.
        layer = LAYERS[type(module)](weakref.proxy(module), look_back) if type(module) in LAYERS else None
        if layer is not None:
            module.forward = layer  # nn.Module calls what the attribute says; the module belongs to this stream alone
    return own


def _past(frames: int, stride: int = 1) -> Callable[[Tensor], Tensor]:
    """A function that puts a convolution's earlier inputs before x (B, C, t, h, w): at the beginning `frames` copies of
    the first, later those that its next window still covers, which are `stride - 1` fewer.
    """
    kept: Tensor | None = None
    keep = frames + 1 - stride

    def with_past(x: Tensor) -> Tensor:
        nonlocal kept
        before = x[:, :, :1].expand(-1, -1, frames, -1, -1) if kept is None else kept
        whole = torch.cat([before, x], dim=2)
        kept = whole[:, :, whole.shape[2] - keep :].clone()  # of the whole, nothing else is kept
        return whole

    return with_past if frames else lambda x: x


def _begins() -> Callable[[], bool]:
    """A function that is true once, the first time that it is called."""
    calls = iter([True])
    return lambda: next(calls, False)


def _ltx_convolution(module: Any, _: int | None) -> Layer:
    with_past = _past(module.kernel_size[0] - 1, module.conv.stride[0])
    return lambda x: module.conv(with_past(x))


def _ltx_downsampler(module: Any, _: int | None) -> Layer:
    begins, (time, rows, cols) = _begins(), module.stride

    def fold(x: Tensor) -> Tensor:
        return rearrange(x, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=rows, r=cols)

    def forward(x: Tensor) -> Tensor:
        if begins():
            x = torch.cat([x[:, :, : time - 1], x], dim=2)
        return fold(module.conv(x)) + fold(x).unflatten(1, (-1, module.group_size)).mean(2)

    return forward


def _ltx_upsampler(module: Any, _: int | None) -> Layer:
    begins, (time, rows, cols) = _begins(), module.stride
    repeats = time * rows * cols // module.upscale_factor

    def spread(x: Tensor) -> Tensor:
        return rearrange(x, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=rows, r=cols)

    def forward(x: Tensor) -> Tensor:
        first = time - 1 if begins() else 0
        out = spread(module.conv(x))[:, :, first:]
        return out + spread(x).repeat(1, repeats, 1, 1, 1)[:, :, first:] if module.residual else out

    return forward


def _cosmos_convolution(module: Any, _: int | None) -> Layer:
    # Where its stride is 2, CosmosDownsample3d puts one more frame before the first push.
    with_past = _past(module.temporal_pad)

    def forward(x: Tensor) -> Tensor:
        padded = F.pad(with_past(x), (*module.spatial_pad, 0, 0), mode=module.pad_mode, value=0.0)
        return F.conv3d(padded, module.weight, module.bias, module.stride, 0, module.dilation)

    return forward


def _cosmos_downsample(module: Any, _: int | None) -> Layer:
    begins, whole = _begins(), cosmos.CosmosDownsample3d.forward

    def forward(x: Tensor) -> Tensor:
        if begins() or not module.temporal_downsample:
            return whole(module, x)
        if module.spatial_downsample:
            x = F.pad(x, (0, 1, 0, 1, 0, 0))
            x = module.conv1(x) + F.avg_pool3d(x, (1, 2, 2))
        out: Tensor = module.conv3(module.conv2(x) + F.avg_pool3d(x, (2, 1, 1)))
        return out

    return forward


def _cosmos_patcher(module: Any, _: int | None) -> Layer:
    begins, whole = _begins(), cosmos.CosmosPatchEmbed3d.forward

    def forward(x: Tensor) -> Tensor:
        if begins():
            return whole(module, x)
        # It repeats a clip's first frame to fill a patch; that patch, of a frame put there for it, is dropped.
        return whole(module, torch.cat([x[:, :, :1], x], dim=2))[:, :, 1:]

    return forward


def _cosmos_upsample(module: Any, _: int | None) -> Layer:
    begins = _begins()

    def forward(x: Tensor) -> Tensor:
        if not module.spatial_upsample and not module.temporal_upsample:
            return x
        if module.temporal_upsample:
            x = x.repeat_interleave(2, dim=2)[:, :, int(begins()) :]
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
        out = attend(module.to_q(normed), module.to_k(normed), module.to_v(normed), places=1)
        out = rearrange(out, "(b h w) n t c -> b (n c) t h w", h=x.shape[3], w=x.shape[4])
        return x + module.to_out[1](module.to_out[0](out))

    return forward


def _cosmos_unpatcher(module: Any, _: int | None) -> Layer:
    begins, whole = _begins(), cosmos.CosmosUnpatcher3d.forward

    def forward(x: Tensor) -> Tensor:
        if begins():
            return whole(module, x)
        # The frames that it drops at a clip's beginning are those of an input frame that is put there for it.
        return whole(module, torch.cat([x[:, :, :1], x], dim=2))[:, :, 1:]

    return forward


def _hunyuan_convolution(module: Any, _: int | None) -> Layer:
    *spatial, before, _ = module.time_causal_padding
    with_past = _past(before)
    return lambda x: module.conv(F.pad(with_past(x), (*spatial, 0, 0), mode=module.pad_mode))


def _hunyuan_downsample(module: Any, _: int | None) -> Layer:
    begins, whole = _begins(), hunyuan.HunyuanVideo15Downsample.forward

    def forward(x: Tensor) -> Tensor:
        if begins() or not module.add_temporal_downsample:
            return whole(module, x)
        out, shortcut = (
            rearrange(values, "b c (t p) (h q) (w r) -> b (p q r c) t h w", p=2, q=2, r=2)
            for values in (module.conv(x), x)
        )
        return out + shortcut.unflatten(1, (-1, module.group_size)).mean(2)

    return forward


def _hunyuan_upsample(module: Any, _: int | None) -> Layer:
    begins, whole = _begins(), hunyuan.HunyuanVideo15Upsample.forward

    def forward(x: Tensor) -> Tensor:
        if begins() or not module.add_temporal_upsample:
            return whole(module, x)
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
        out = attend(module.to_q(normed), module.to_k(normed), module.to_v(normed), places=height * width)
        return x + module.proj_out(rearrange(out, "b 1 (t h w) c -> b c t h w", h=height, w=width))

    return forward


def _attention(heads: Callable[[Tensor], Tensor], look_back: int | None) -> Callable[..., Tensor]:
    """Attention of frames of `places` tokens to themselves and the frames before, those of earlier pushes included."""
    kept: tuple[Tensor, Tensor] | None = None

    def attend(query: Tensor, key: Tensor, value: Tensor, places: int) -> Tensor:
        nonlocal kept
        query, key, value = heads(query), heads(key), heads(value)
        if kept is not None:
            key, value = torch.cat([kept[0], key], dim=2), torch.cat([kept[1], value], dim=2)
        limit = key.shape[2] if look_back is None else look_back * places
        kept = key[:, :, max(0, key.shape[2] - limit) :].clone(), value[:, :, max(0, key.shape[2] - limit) :].clone()
        out, end = [], key.shape[2] - query.shape[2]
        for frame in query.split(places, dim=2):
            seen = slice(max(0, end - limit), end + places)
            out.append(F.scaled_dot_product_attention(frame, key[:, :, seen], value[:, :, seen]))
            end += places
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
"""Layers that look back or know the beginning; all others treat each frame by itself."""
