"""Any image VAE as a causal video tokenizer: the latents of a chunk's frames are concatenated along channels."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from vidchat.registry import register
from vidchat.tokenizers.chunkwise import ChunkwiseVAE
from vidchat.tokenizers.weights import TokenizerError, load_error

IMAGE_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny, "AutoencoderDC": AutoencoderDC}


@register("packed_vae", by="from_pretrained")
class PackedVAE(ChunkwiseVAE):
    """An image VAE of diffusers that encodes the frames of a chunk separately and concatenates their latents.

    The channels of a latent are those of the chunk's first frame, then those of its second frame, and so on.

    Args:
        image_vae: An `AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC`. A latent is the mode of its distribution.
            Its `scaling_factor` is not used: the latent statistics stored here replace it.
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
        """Loads the image VAE of a Hub name or a local folder; `kind` is its class in diffusers.

        The latent statistics are the `scaling_factor` and `shift_factor` of the VAE, if it has them.

        Raises:
            TokenizerError: there is no such VAE, or the Hub cannot be reached.
        """
        if kind not in IMAGE_VAES:
            raise TokenizerError(f"{kind} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}")
        try:
            image_vae = IMAGE_VAES[kind].from_pretrained(name, subfolder=subfolder, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise load_error(name, kind, subfolder, error) from error
        tokenizer = cls(image_vae, temporal_stride)
        scale = getattr(image_vae.config, "scaling_factor", None) or 1.0
        shift = getattr(image_vae.config, "shift_factor", None) or 0.0
        ones = torch.ones(tokenizer.channels)
        tokenizer.set_statistics(shift * ones, ones / scale)
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
            raise TokenizerError(
                f"{config['kind']} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}"
            )
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
    """Returns the pixels per latent position, from the number of resolutions; not every VAE has an attribute for it."""
    config = _config(image_vae)
    for key in ("block_out_channels", "encoder_block_out_channels"):
        if key in config:
            return 2 ** (len(config[key]) - 1)
    raise TokenizerError(
        f"{type(image_vae).__name__} has no block_out_channels in its configuration, so its stride is unknown"
    )
