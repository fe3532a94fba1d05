"""Any image VAE as a causal video tokenizer: the latents of a chunk's frames laid side by side along channels."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from vidchat.registry import register
from vidchat.tokenizers.chunkwise import ChunkwiseVAE
from vidchat.tokenizers.weights import TokenizerError, not_loaded

IMAGE_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny, "AutoencoderDC": AutoencoderDC}


@register("packed_vae", by="from_pretrained")
class PackedVAE(ChunkwiseVAE):
    """An image VAE of diffusers behind the chunk interface: the latents of a chunk's frames, along channels.

    Channel order of a latent: frame 0's channels, then frame 1's, and so on.

    Args:
        image_vae: An `AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC`. Of a distribution, the mode is taken. Its
            `scaling_factor` is not used: the statistics stored here do its work.
        temporal_stride: Frames in a chunk.
    """

    def __init__(self, image_vae: nn.Module, temporal_stride: int = 4) -> None:
        kind = type(image_vae).__name__
        if kind not in IMAGE_VAES:
            raise TokenizerError(f"{kind} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}")
        super().__init__(_latent_channels(image_vae) * temporal_stride, temporal_stride, _spatial_stride(image_vae))
        self.image_vae: Any = image_vae

    @classmethod
    def from_pretrained(cls, name: str, kind: str, temporal_stride: int = 4, subfolder: str | None = None) -> Self:
        """Takes the image VAE of a Hub name or a local folder; `kind` is its class in diffusers.

        The latents' statistics start from the VAE's own `scaling_factor` and `shift_factor`, where it has them.

        Raises:
            TokenizerError: there is no such VAE, or it cannot be reached.
        """
        if kind not in IMAGE_VAES:
            raise TokenizerError(f"{kind} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}")
        try:
            image_vae = IMAGE_VAES[kind].from_pretrained(name, subfolder=subfolder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise not_loaded(name, kind, subfolder, error) from error
        tokenizer = cls(image_vae, temporal_stride)
        scale = getattr(image_vae.config, "scaling_factor", None) or 1.0
        shift = getattr(image_vae.config, "shift_factor", None) or 0.0
        one = torch.ones(tokenizer.channels)
        tokenizer.set_statistics(shift * one, one / scale)
        return tokenizer.eval()

    def config(self) -> dict[str, Any]:
        return {
            "kind": type(self.image_vae).__name__,
            "image_vae": _config(self.image_vae),
            "temporal_stride": self.temporal_stride,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if config["kind"] not in IMAGE_VAES:
            raise TokenizerError(f"{config['kind']} is not an image VAE that can be packed")
        return cls(IMAGE_VAES[config["kind"]].from_config(config["image_vae"]), config["temporal_stride"])

    def encode_chunks(self, frames: Tensor) -> Tensor:
        encoded = self.image_vae.encode(frames.flatten(0, 1))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        return latents.unflatten(0, (-1, self.temporal_stride)).flatten(1, 2)

    def decode_chunks(self, latents: Tensor) -> Tensor:
        frames = latents.unflatten(1, (self.temporal_stride, -1)).flatten(0, 1)
        return self.image_vae.decode(frames).sample.unflatten(0, (-1, self.temporal_stride))


def _config(image_vae: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in dict(image_vae.config).items() if not k.startswith("_")}  # type: ignore[arg-type]


def _latent_channels(image_vae: nn.Module) -> int:
    return int(_config(image_vae)["latent_channels"])


def _spatial_stride(image_vae: nn.Module) -> int:
    """Pixels per latent position, counted from the encoder's resolutions; not every VAE has an attribute for it."""
    config = _config(image_vae)
    for key in ("block_out_channels", "encoder_block_out_channels"):
        if key in config:
            return 2 ** (len(config[key]) - 1)
    raise TokenizerError(f"{type(image_vae).__name__} does not say how many resolutions it has")
