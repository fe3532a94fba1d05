"""Streams of causal video VAEs: latents to frames and frames to latents as they arrive, at the same cost each chunk.

`AutoencoderKLWan` (2.1, and 2.2 with its patches) has a feature cache that its encoder and its decoder take. LTX-Video,
Cosmos and HunyuanVideo 1.5 have none; `carried.py` gives them one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from vidchat.tokenizers.streaming_layers import make_streaming
from vidchat.tokenizers.video import VideoEncoderStream, VideoStream

if TYPE_CHECKING:
    from vidchat.tokenizers.causal import CausalVAE

WAN_STRIDE = 4  # frames that AutoencoderKLWan encodes at a time


class WanCache:
    """What Wan's decoder carries from one latent to the next: the last frames each convolution has seen.

    `AutoencoderKLWan.decode` keeps the same list on the module, where two streams would share it.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        self.started = False

    def decode(self, latents: Tensor) -> Tensor:
        """The next raw latents (B, C, n, h, w) -> their frames, 1 to the clip's first and 4 to each other."""
        return torch.cat([self._decode(latent) for latent in latents.split(1, dim=2)], dim=2)

    def _decode(self, latent: Tensor) -> Tensor:
        frames = self.vae.decoder(
            self.vae.post_quant_conv(latent),
            feat_cache=self.features,
            feat_idx=[0],
            first_chunk=not self.started,
        )
        self.started = True
        patch = self.vae.config.patch_size
        return frames if patch is None else unpatchify(frames, patch_size=patch)


class StreamingCache:
    """The same for decoders that take no cache: a decoder that carries its memory itself."""

    def __init__(self, tokenizer: CausalVAE) -> None:
        self.tokenizer = tokenizer
        self.decoder = make_streaming(tokenizer.vae.decoder, tokenizer.look_back)

    def decode(self, latents: Tensor) -> Tensor:
        """See `WanCache.decode`."""
        vae, given = self.tokenizer.vae, self.tokenizer.decoding(latents)
        if hasattr(vae, "post_quant_conv"):  # Cosmos has one, of single places
            latents = vae.post_quant_conv(latents)
        frames: Tensor = self.decoder(latents, **given)
        return frames


class CausalStream(VideoStream):
    """Streams with a cache of its own, so that streams of one tokenizer do not meet."""

    def __init__(self, tokenizer: CausalVAE) -> None:
        wan = isinstance(tokenizer.vae, diffusers.AutoencoderKLWan)
        self.tokenizer = tokenizer
        self.cache: WanCache | StreamingCache = WanCache(tokenizer.vae) if wan else StreamingCache(tokenizer)

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        self.tokenizer.check_latents(latents)
        raw = self.tokenizer.denormalise(latents).to(self.tokenizer.vae.dtype)
        return self.cache.decode(raw).to(latents.dtype).clamp(-1, 1)


class CausalEncoderStream(VideoEncoderStream):
    """Encodes with a memory of its own, so that streams of one tokenizer do not affect each other."""

    _tokenizer: CausalVAE

    def __init__(self, tokenizer: CausalVAE) -> None:
        super().__init__(tokenizer)
        vae = tokenizer.vae
        self.encoder: WanEncoder | Callable[[Tensor], Tensor]
        if isinstance(vae, diffusers.AutoencoderKLWan):
            self.encoder = WanEncoder(vae)
        else:
            self.encoder = make_streaming(vae.encoder, tokenizer.look_back)

    def _encode(self, frames: Tensor) -> Tensor:
        vae = self._tokenizer.vae
        moments = self.encoder(frames.to(vae.dtype))
        if hasattr(vae, "quant_conv"):  # Wan and Cosmos have one, of kernel size 1
            moments = vae.quant_conv(moments)
        # The mode of a distribution is its mean, the first half of its channels; Cosmos has no other.
        return moments[:, : self._tokenizer.channels].to(frames.dtype)


class WanEncoder:
    """Wan's encoder with a feature cache of its own; `AutoencoderKLWan.encode` keeps it on the module."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.features: list[Any] = [None] * vae._cached_conv_counts["encoder"]

    def __call__(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, n, H, W) of the next whole chunks -> moments (B, 2C, m, h, w)."""
        patch = self.vae.config.patch_size
        patches = frames if patch is None else patchify(frames, patch_size=patch)
        first = patches.shape[2] % WAN_STRIDE  # 1 in a clip's first push, else 0: its first frame is encoded alone
        chunks = [patches[:, :, :first], *patches[:, :, first:].split(WAN_STRIDE, dim=2)]
        return torch.cat([self._encode(chunk) for chunk in chunks if chunk.shape[2]], dim=2)

    def _encode(self, chunk: Tensor) -> Tensor:
        moments: Tensor = self.vae.encoder(chunk, feat_cache=self.features, feat_idx=[0])
        return moments
