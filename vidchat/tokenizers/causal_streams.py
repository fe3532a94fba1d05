"""Streams of causal video VAEs: they encode frames and decode latents as they arrive, at the same cost for each chunk.

The encoder and the decoder of `AutoencoderKLWan` (2.1, and 2.2 with its patches) take a feature cache. LTX-Video,
Cosmos and HunyuanVideo 1.5 have no cache; `streaming_layers.py` adds one.
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

WAN_STRIDE = 4  # number of frames that AutoencoderKLWan encodes at a time


class WanDecoder:
    """Wan's decoder with its own feature cache: the last inputs of each convolution.

    `AutoencoderKLWan.decode` keeps the cache on the module, where two streams would share it.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.features: list[Any] = [None] * vae._cached_conv_counts["decoder"]
        self.started = False

    def decode(self, latents: Tensor) -> Tensor:
        """Returns the frames (B, 3, m, H, W) of the next raw latents (B, C, n, h, w): 1 for latent 0, else 4."""
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


class StreamingDecoder:
    """The decoder of another VAE, whose layers keep their own state."""

    def __init__(self, tokenizer: CausalVAE) -> None:
        self.tokenizer = tokenizer
        self.decoder = make_streaming(tokenizer.vae.decoder, tokenizer.look_back)

    def decode(self, latents: Tensor) -> Tensor:
        """See `WanDecoder.decode`."""
        vae, arguments = self.tokenizer.vae, self.tokenizer.decoder_arguments(latents)
        if hasattr(vae, "post_quant_conv"):  # Cosmos has one, of kernel size 1
            latents = vae.post_quant_conv(latents)
        frames: Tensor = self.decoder(latents, **arguments)
        return frames


class CausalStream(VideoStream):
    """Decodes with its own state, so that streams of one tokenizer are independent."""

    def __init__(self, tokenizer: CausalVAE) -> None:
        wan = isinstance(tokenizer.vae, diffusers.AutoencoderKLWan)
        self.tokenizer = tokenizer
        self.decoder: WanDecoder | StreamingDecoder = WanDecoder(tokenizer.vae) if wan else StreamingDecoder(tokenizer)

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        self.tokenizer.check_latents(latents)
        raw = self.tokenizer.denormalise(latents).to(self.tokenizer.vae.dtype)
        return self.decoder.decode(raw).to(latents.dtype).clamp(-1, 1)


class CausalEncoderStream(VideoEncoderStream):
    """Encodes with its own state, so that streams of one tokenizer are independent."""

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
        # The mode of the distribution is its mean, the first half of the channels; Cosmos has the mean only.
        return moments[:, : self._tokenizer.channels].to(frames.dtype)


class WanEncoder:
    """Wan's encoder with its own feature cache, which `AutoencoderKLWan.encode` keeps on the module."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.features: list[Any] = [None] * vae._cached_conv_counts["encoder"]

    def __call__(self, frames: Tensor) -> Tensor:
        """Returns the moments (B, 2C, m, h, w) of the frames (B, 3, n, H, W) of the next m complete chunks."""
        patch = self.vae.config.patch_size
        patches = frames if patch is None else patchify(frames, patch_size=patch)
        first = patches.shape[2] % WAN_STRIDE  # 1 in the first push, else 0: frame 0 is encoded alone
        chunks = [patches[:, :, :first], *patches[:, :, first:].split(WAN_STRIDE, dim=2)]
        return torch.cat([self._encode(chunk) for chunk in chunks if chunk.shape[2]], dim=2)

    def _encode(self, chunk: Tensor) -> Tensor:
        moments: Tensor = self.vae.encoder(chunk, feat_cache=self.features, feat_idx=[0])
        return moments
