"""The demo's video tokenizer: a small convolutional network on the frames of a chunk, stacked along channels.

It compresses over time inside a chunk in one pass. It trains on a CPU within minutes because of its initialisation: a
linear map, set to the principal components of the frames' blocks, reconstructs frames at 26 dB (64 components of 16x16
pixels x 4 frames of drawn heads), and the network added to it starts at zero and learns the residual. With random
initialisation the same network needs minutes to reach 18 dB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.registry import register
from vidchat.runtime.distributed import copy_from_first_rank, sum_over_ranks
from vidchat.tokenizers.chunkwise import ChunkwiseVAE
from vidchat.tokenizers.weights import TokenizerError


@register("stacked_vae", by="load")
class StackedVAE(ChunkwiseVAE):
    """The sum of a linear map of blocks and a residual network, in the encoder and in the decoder.

    The linear map works on blocks of the size of a latent position. The network works on small patches (space to depth,
    as in Shi et al., arXiv 1609.05158), so nothing runs at the resolution of the frames. It has no normalisation, as
    TAESD (`diffusers.AutoencoderTiny`): with group norms, a network of this size learns colour slowly.

    Args:
        channels: C, the channels of the latents.
        patch: Pixels along one side of a patch; the finest resolution is the grid of patches.
        widths: Channels at each resolution, fine to coarse; each further resolution halves the grid.
        encoder_blocks: Residual blocks of the encoder at each resolution, fine to coarse.
        decoder_blocks: Residual blocks of the decoder at each resolution, fine to coarse.
        temporal_stride: Frames in a chunk.
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
        values = 3 * temporal_stride
        self.to_latents = nn.Conv2d(values * self.spatial_stride**2, channels, 1)
        self.to_blocks = nn.Conv2d(channels, values * self.spatial_stride**2, 1)
        self.encoder = _encoder(values * patch**2, self.widths, self.encoder_blocks, channels)
        self.decoder = _decoder(values * patch**2, self.widths, self.decoder_blocks, channels)

    def config(self) -> dict[str, Any]:
        return {
            "channels": self.channels,
            "patch": self.patch,
            "widths": list(self.widths),
            "encoder_blocks": list(self.encoder_blocks),
            "decoder_blocks": list(self.decoder_blocks),
            "temporal_stride": self.temporal_stride,
        }

    def encode_chunks(self, frames: Tensor) -> Tensor:
        stack = frames.flatten(1, 2)
        linear = self.to_latents(F.pixel_unshuffle(stack, self.spatial_stride))
        patches = F.pixel_unshuffle(stack, self.patch).contiguous(memory_format=torch.channels_last)
        return linear.float() + self.encoder(patches).float()

    def decode_chunks(self, latents: Tensor) -> Tensor:
        blocks = F.pixel_shuffle(self.to_blocks(latents), self.spatial_stride)
        patches = self.decoder(latents.contiguous(memory_format=torch.channels_last))
        stack = blocks.float() + F.pixel_shuffle(patches, self.patch).float()
        return stack.unflatten(1, (self.temporal_stride, 3))

    @torch.no_grad()
    def start_from(self, clips: Iterable[Tensor], motion: float = 1.0) -> None:
        """Sets the linear maps to the first C principal components of the clips' blocks, scaled to variance 1.

        Every rank gets the components of the clips of all ranks.

        Args:
            clips: Batches of frames (B, 3, 4T+1, H, W) float in [-1, 1], with C blocks or more in total.
            motion: Weight of the deviations from a chunk's mean frame when components are chosen. With 1, few
                components represent motion; a network that starts without any may never learn motion.

        Raises:
            TokenizerError: there are fewer blocks, or fewer directions in which they vary, than latent channels.
        """
        mean, covariance = self._moments(clips)
        weighted = self._weight_motion(self._weight_motion(covariance, motion).T, motion)
        variance, directions = torch.linalg.eigh((weighted + weighted.T) / 2)
        components, spread = directions[:, -self.channels :], variance[-self.channels :].clamp_min(0).sqrt()
        if not bool((spread > 1e-4).all()):
            raise TokenizerError(
                f"the clips vary in fewer than {self.channels} directions; give more clips or lower channels"
            )
        to_latents = self._weight_motion(components, motion) / spread
        self.to_latents.weight.copy_(to_latents.T[..., None, None])
        self.to_latents.bias.copy_(-(mean @ to_latents))  # type: ignore[union-attr]
        self.to_blocks.weight.copy_((self._weight_motion(components, 1 / motion) * spread)[..., None, None])
        self.to_blocks.bias.copy_(mean)  # type: ignore[union-attr]
        # Ranks may compute the same components with other signs.
        copy_from_first_rank([*self.to_latents.parameters(), *self.to_blocks.parameters()])

    def _moments(self, clips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the mean (D,) and the covariance (D, D) of the clips' blocks of D values."""
        values = self.to_latents.in_channels
        # Double precision: the last components, of small variance, would otherwise depend on the order of the sums.
        count, total, products = (
            self.to_latents.weight.new_zeros(shape, dtype=torch.float64) for shape in ((), (values,), (values, values))
        )
        for frames in clips:
            stack = F.pixel_unshuffle(self.split(frames).flatten(0, 1).flatten(1, 2), self.spatial_stride)
            blocks = stack.permute(0, 2, 3, 1).flatten(0, 2).float()
            count, total, products = count + len(blocks), total + blocks.sum(0), products + blocks.T @ blocks
        for value in (count, total, products):
            sum_over_ranks(value)
        block_count = float(count.clamp(min=1))
        mean = total / block_count
        return mean, products / block_count - mean[:, None] * mean

    def _weight_motion(self, blocks: Tensor, motion: float) -> Tensor:
        """Multiplies the deviations of blocks (D, n) from their mean frame; symmetric, inverted by `1 / motion`."""
        frames = blocks.unflatten(0, (self.temporal_stride, -1))
        mean = frames.mean(0, keepdim=True)
        return (mean + motion * (frames - mean)).flatten(0, 1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection; the second is initialised to zero."""

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
    return nn.Sequential(*layers, nn.SiLU(), _zero_init(nn.Conv2d(widths[-1], channels, 1)))


def _decoder(values: int, widths: Sequence[int], blocks: Sequence[int], channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[-1], 1)]
    for level in reversed(range(len(widths))):
        layers += [ResidualBlock(widths[level]) for _ in range(blocks[level])]
        if level:
            layers += [nn.Conv2d(widths[level], 4 * widths[level - 1], 1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.SiLU(), _zero_init(nn.Conv2d(widths[0], values, 1)))


def _zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialises a layer to zero and returns it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
