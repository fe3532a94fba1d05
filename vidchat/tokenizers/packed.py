"""Causal video tokenizers made of networks that know no time: each chunk of pictures is encoded by itself.

Two ways to make one latent of a chunk's pictures. `PackedVAE` runs any image VAE on each picture and lays the latents of
the chunk side by side along channels. `StackedVAE` lays the pictures themselves side by side and runs one small network
on the stack, which can compress over time inside the chunk and costs one pass per chunk. In both, picture 0, which is
alone in its chunk, is repeated to fill it; and both stream without carrying anything but the knowledge that chunk 0 is
over.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.tokenizers.video import VideoStream, VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError


class ChunkwiseVAE(VideoTokenizer):
    """A tokenizer that encodes and decodes every chunk by itself."""

    @abstractmethod
    def encode_chunks(self, pictures: Tensor) -> Tensor:
        """Chunks (N, P, 3, H, W) of P = temporal_stride pictures -> raw latents (N, C, h, w)."""

    @abstractmethod
    def decode_chunks(self, latents: Tensor) -> Tensor:
        """Raw latents (N, C, h, w) -> chunks (N, P, 3, H, W), not clamped."""

    def encode_raw(self, pictures: Tensor) -> Tensor:
        chunks = self.split(pictures)
        return self.encode_chunks(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2]).transpose(1, 2)

    def decode_raw(self, latents: Tensor) -> Tensor:
        return self.join(self.decode_all(latents))

    def decode_all(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, n, h, w) -> all pictures of their chunks (B, 3, P*n, H, W), chunk 0's copies included."""
        folded = latents.transpose(1, 2)
        chunks = self.decode_chunks(folded.flatten(0, 1)).unflatten(0, folded.shape[:2])
        return chunks.flatten(1, 2).transpose(1, 2)

    def split(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 4T+1, H, W) -> chunks (B, T+1, P, 3, H, W), picture 0 repeated to fill chunk 0."""
        stride = self.temporal_stride
        filled = torch.cat([pictures[:, :, :1].expand(-1, -1, stride - 1, -1, -1), pictures], dim=2)
        return filled.transpose(1, 2).unflatten(1, (-1, stride))

    def join(self, pictures: Tensor) -> Tensor:
        """All pictures (B, 3, P*(T+1), H, W) -> (B, 3, 4T+1, H, W): of chunk 0, only the last copy is kept."""
        return pictures[:, :, self.temporal_stride - 1 :]

    def stream(self) -> VideoStream:
        return ChunkwiseStream(self)


class ChunkwiseStream(VideoStream):
    """Decodes chunks as they come; the first of them gives one picture."""

    def __init__(self, vae: ChunkwiseVAE) -> None:
        self.vae = vae
        self.started = False

    def push(self, latents: Tensor) -> Tensor:
        self.vae.check_latents(latents)
        pictures = self.vae.decode_all(self.vae.denormalise(latents)).clamp(-1, 1)
        joined = pictures if self.started else self.vae.join(pictures)
        self.started = True
        return joined


class StackedVAE(ChunkwiseVAE):
    """One convolutional network per chunk, on its pictures stacked along channels.

    The stack is cut into patches (space to depth) before the first convolution, as sub-pixel networks do (Shi et al.,
    arXiv 1609.05158), so that nothing runs at the picture's own resolution. Residual blocks without normalisation, as
    in TAESD (`diffusers.AutoencoderTiny`), because group norms learn colour slowly at this size.

    Args:
        channels: C of the latents.
        patch: Pixels along one side of a patch; the first width works on the grid of patches.
        widths: Channels at each resolution, fine to coarse; each but the first halves the grid.
        encoder_blocks: Residual blocks of the encoder at each resolution, fine to coarse.
        decoder_blocks: Residual blocks of the decoder at each resolution, fine to coarse.
        temporal_stride: Pictures in a chunk.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        widths: Sequence[int],
        encoder_blocks: Sequence[int],
        decoder_blocks: Sequence[int],
        temporal_stride: int = 4,
    ) -> None:
        if not len(widths) == len(encoder_blocks) == len(decoder_blocks) > 0:
            raise TokenizerError(
                "widths, encoder_blocks and decoder_blocks must have one entry per resolution, got "
                f"{len(widths)}, {len(encoder_blocks)} and {len(decoder_blocks)}"
            )
        super().__init__(channels, temporal_stride, patch * 2 ** (len(widths) - 1))
        self.patch, self.widths = patch, tuple(widths)
        self.encoder_blocks, self.decoder_blocks = tuple(encoder_blocks), tuple(decoder_blocks)
        values = 3 * temporal_stride * patch**2
        self.encoder = _encoder(values, self.widths, self.encoder_blocks, channels)
        self.decoder = _decoder(values, self.widths, self.decoder_blocks, channels)

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "patch": self.patch,
            "widths": list(self.widths),
            "encoder_blocks": list(self.encoder_blocks),
            "decoder_blocks": list(self.decoder_blocks),
            "temporal_stride": self.temporal_stride,
        }

    def encode_chunks(self, pictures: Tensor) -> Tensor:
        stack = F.pixel_unshuffle(pictures.flatten(1, 2), self.patch)
        return self.encoder(stack.contiguous(memory_format=torch.channels_last)).float()

    def decode_chunks(self, latents: Tensor) -> Tensor:
        patches = self.decoder(latents.contiguous(memory_format=torch.channels_last)).float()
        return F.pixel_shuffle(patches, self.patch).unflatten(1, (self.temporal_stride, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, which the block is at first: the second starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def _encoder(values: int, widths: Sequence[int], blocks: Sequence[int], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(values, widths[0], 1)]
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level:
            layers.append(nn.Conv2d(widths[level - 1], width, 2, stride=2))
        layers += [ResidualBlock(width) for _ in range(count)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[-1], channels, 1))


def _decoder(values: int, widths: Sequence[int], blocks: Sequence[int], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 1)]
    for level in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[level]) for _ in range(blocks[level])]
        if level:
            layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[0], values, 1))


IMAGE_VAES = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny, "AutoencoderDC": AutoencoderDC}


class PackedVAE(ChunkwiseVAE):
    """An image VAE of diffusers behind the chunk interface: the latents of a chunk's pictures, along channels.

    Channel order of a latent: picture 0's channels, then picture 1's, and so on.

    Args:
        image_vae: An `AutoencoderKL`, `AutoencoderTiny` or `AutoencoderDC`. Of a distribution, the mode is taken. Its
            `scaling_factor` is not used: the statistics stored here do its work.
        temporal_stride: Pictures in a chunk.
    """

    def __init__(self, image_vae: nn.Module, temporal_stride: int = 4) -> None:
        kind = type(image_vae).__name__
        if kind not in IMAGE_VAES:
            raise TokenizerError(f"{kind} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}")
        super().__init__(_latent_channels(image_vae) * temporal_stride, temporal_stride, _spatial_stride(image_vae))
        self.image_vae = image_vae

    @classmethod
    def from_pretrained(cls, name: str, kind: str, temporal_stride: int = 4, subfolder: str | None = None) -> Self:
        """Takes the image VAE of a Hub name or a local folder; `kind` is its class in diffusers.

        The latents' statistics start from the VAE's own `scaling_factor` and `shift_factor`, where it has them.
        """
        if kind not in IMAGE_VAES:
            raise TokenizerError(f"{kind} is not an image VAE that can be packed; use one of {sorted(IMAGE_VAES)}")
        image_vae = IMAGE_VAES[kind].from_pretrained(name, subfolder=subfolder)
        tokenizer = cls(image_vae, temporal_stride)
        scale = getattr(image_vae.config, "scaling_factor", None) or 1.0
        shift = getattr(image_vae.config, "shift_factor", None) or 0.0
        one = torch.ones(tokenizer.channels)
        tokenizer.set_statistics(shift * one, one / scale)
        return tokenizer.eval()

    def config(self) -> dict[str, Any]:
        image_config = {k: v for k, v in self.image_vae.config.items() if not k.startswith("_")}
        return {
            "kind": type(self.image_vae).__name__,
            "image_vae": image_config,
            "temporal_stride": self.temporal_stride,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        if config["kind"] not in IMAGE_VAES:
            raise TokenizerError(f"{config['kind']} is not an image VAE that can be packed")
        return cls(IMAGE_VAES[config["kind"]].from_config(config["image_vae"]), config["temporal_stride"])

    def encode_chunks(self, pictures: Tensor) -> Tensor:
        encoded = self.image_vae.encode(pictures.flatten(0, 1))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
        return latents.unflatten(0, (-1, self.temporal_stride)).flatten(1, 2)

    def decode_chunks(self, latents: Tensor) -> Tensor:
        pictures = latents.unflatten(1, (self.temporal_stride, -1)).flatten(0, 1)
        return self.image_vae.decode(pictures).sample.unflatten(0, (-1, self.temporal_stride))


def _latent_channels(image_vae: nn.Module) -> int:
    return int(image_vae.config["latent_channels"])


def _spatial_stride(image_vae: nn.Module) -> int:
    """Pixels per latent position, counted from the encoder's resolutions (a VAE's own attribute is not always right)."""
    for key in ("block_out_channels", "encoder_block_out_channels"):
        if key in image_vae.config:
            return 2 ** (len(image_vae.config[key]) - 1)
    raise TokenizerError(f"{type(image_vae).__name__} does not say how many resolutions it has")
