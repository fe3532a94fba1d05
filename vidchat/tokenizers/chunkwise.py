"""Video tokenizers that encode each chunk of frames independently.

Frame 0, the only frame of chunk 0, is repeated to fill the chunk. The only state of a stream is whether chunk 0 has
passed. `packed.PackedVAE` runs an image VAE on each frame; `stacked.StackedVAE` runs one network on the frames of a
chunk, stacked along channels.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from vidchat.tokenizers.video import VideoEncoderStream, VideoStream, VideoTokenizer


class ChunkwiseVAE(VideoTokenizer):
    """A tokenizer that encodes and decodes every chunk independently."""

    @abstractmethod
    def encode_chunks(self, frames: Tensor) -> Tensor:
        """Encodes chunks (N, P, 3, H, W) of P = temporal_stride frames to raw latents (N, C, h, w)."""

    @abstractmethod
    def decode_chunks(self, latents: Tensor) -> Tensor:
        """Decodes raw latents (N, C, h, w) to chunks (N, P, 3, H, W), not clamped."""

    def encode_raw(self, frames: Tensor) -> Tensor:
        return self.encode_all(self.split(frames))

    def encode_all(self, chunks: Tensor) -> Tensor:
        """Encodes chunks (B, n, P, 3, H, W) to raw latents (B, C, n, h, w)."""
        return self.encode_chunks(chunks.flatten(0, 1)).unflatten(0, chunks.shape[:2]).transpose(1, 2)

    def decode_raw(self, latents: Tensor) -> Tensor:
        return self.join(self.decode_all(latents))

    def decode_all(self, latents: Tensor) -> Tensor:
        """Decodes raw latents (B, C, n, h, w) to all frames of their chunks (B, 3, P*n, H, W), copies included."""
        folded = latents.transpose(1, 2)
        chunks = self.decode_chunks(folded.flatten(0, 1)).unflatten(0, folded.shape[:2])
        return chunks.flatten(1, 2).transpose(1, 2)

    def split(self, frames: Tensor) -> Tensor:
        """Splits frames (B, 3, 4T+1, H, W) into chunks (B, T+1, P, 3, H, W); frame 0 is repeated to fill chunk 0."""
        stride = self.temporal_stride
        filled = torch.cat([frames[:, :, :1].expand(-1, -1, stride - 1, -1, -1), frames], dim=2)
        return filled.transpose(1, 2).unflatten(1, (-1, stride))

    def join(self, frames: Tensor) -> Tensor:
        """Drops the copies of frame 0 from all frames (B, 3, P*(T+1), H, W); returns (B, 3, 4T+1, H, W)."""
        return frames[:, :, self.temporal_stride - 1 :]

    def stream(self) -> VideoStream:
        return ChunkwiseStream(self)

    def encoder_stream(self) -> VideoEncoderStream:
        return ChunkwiseEncoderStream(self)


class ChunkwiseStream(VideoStream):
    """Decodes chunks as they arrive; the first gives one frame."""

    def __init__(self, vae: ChunkwiseVAE) -> None:
        self.vae = vae
        self.started = False

    def push(self, latents: Tensor) -> Tensor:
        self.vae.check_latents(latents)
        frames = self.vae.decode_all(self.vae.denormalise(latents)).clamp(-1, 1)
        joined = frames if self.started else self.vae.join(frames)
        self.started = True
        return joined


class ChunkwiseEncoderStream(VideoEncoderStream):
    """Encodes chunks as they arrive; the first is frame 0, repeated."""

    _tokenizer: ChunkwiseVAE

    def _encode(self, frames: Tensor) -> Tensor:
        if not self._started:
            return self._tokenizer.encode_raw(frames)
        return self._tokenizer.encode_all(frames.transpose(1, 2).unflatten(1, (-1, self._tokenizer.temporal_stride)))
