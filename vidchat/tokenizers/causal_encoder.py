"""Encoders of diffusers' causal video VAEs that take frames as they arrive; the decoders' twins are in `causal.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from torch import Tensor

from vidchat.tokenizers.carried import carrying
from vidchat.tokenizers.video import VideoEncoderStream

if TYPE_CHECKING:
    from vidchat.tokenizers.causal import CausalVAE


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
            self.encoder = carrying(vae.encoder, tokenizer.look_back)

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
        first = patches.shape[2] % 4  # 1 in a clip's first push, else 0: its first frame is encoded alone
        chunks = [*patches[:, :, :first].split(1, dim=2), *patches[:, :, first:].split(4, dim=2)]
        return torch.cat([self._encode(chunk) for chunk in chunks if chunk.shape[2]], dim=2)

    def _encode(self, chunk: Tensor) -> Tensor:
        moments: Tensor = self.vae.encoder(chunk, feat_cache=self.features, feat_idx=[0])
        return moments
