"""Frames <-> latents: the interface that every video tokenizer implements.

A clip has 4T+1 frames (4 stands for `temporal_stride`). Frame 0 is encoded to latent 0; frames `4(t-1)+1 .. 4t` are
encoded to latent t. Encoder and decoder are causal: latent t depends on no later frame, and the frames of chunk t
depend on no later latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vidchat.runtime.distributed import sum_over_ranks
from vidchat.tokenizers.weights import SavedTokenizer, TokenizerError


class VideoStream(ABC):
    """Decodes latents as they arrive. Holds the decoder's state between pushes."""

    @abstractmethod
    def push(self, latents: Tensor) -> Tensor:
        """Returns the frames (B, 3, m, H, W) in [-1, 1] of the next n chunks; latents (B, C, n, h, w).

        The first chunk of the stream gives 1 frame, each later chunk `temporal_stride`. The concatenated frames of all
        pushes equal `decode` of all latents at once.
        """


class VideoEncoderStream(ABC):
    """Encodes a video as its frames arrive. Holds the encoder's state between pushes.

    Args:
        tokenizer: The tokenizer; any number of streams share its weights.
    """

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        self._tokenizer = tokenizer
        self._buffer: Tensor | None = None  # frames of the incomplete chunk
        self._started = False

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Returns the normalised latents (B, C, m, h, w) that the next frames complete.

        The first frame completes a latent, then every `temporal_stride` frames do; n is any number, and m may be 0. The
        concatenated latents of all pushes equal `encode` of the whole video.

        Args:
            frames: Frames (B, 3, n, H, W) float in [-1, 1].

        Raises:
            TokenizerError: frames are not float of this shape, or a side is not a multiple of `spatial_stride`.
        """
        size = self._tokenizer.check_frame_shape(frames)
        if self._buffer is not None:
            frames = torch.cat([self._buffer, frames], dim=2)
        stride, count = self._tokenizer.temporal_stride, frames.shape[2]
        rest = count % stride if self._started else max(count - 1, 0) % stride
        complete, self._buffer = frames[:, :, : count - rest], frames[:, :, count - rest :].clone()
        if not complete.shape[2]:
            return frames.new_zeros(len(frames), self._tokenizer.channels, 0, *size)
        raw = self._encode(complete)
        self._started = True
        return self._tokenizer.normalise(raw)

    @abstractmethod
    def _encode(self, frames: Tensor) -> Tensor:
        """Returns the raw latents (B, C, m, h, w) of the frames (B, 3, n, H, W) of m > 0 complete chunks.

        The first call, when `_started` is false, begins with frame 0.
        """


class VideoTokenizer(SavedTokenizer):
    """A causal video autoencoder whose latents are normalised per channel.

    Attributes:
        channels: C, the channels of the latents.
        temporal_stride: Frames in a chunk.
        spatial_stride: Pixels along one side of a latent position; the sides of frames must be multiples of it.
        causal: Whether the decoder is causal; only a causal decoder can stream.
        latents_mean: Buffer (C,), saved with the weights: mean of the raw latents over the training data.
        latents_std: Buffer (C,), saved with the weights: standard deviation of the raw latents.
    """

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, channels: int, temporal_stride: int, spatial_stride: int, causal: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.temporal_stride = temporal_stride
        self.spatial_stride = spatial_stride
        self.causal = causal
        self.register_buffer("latents_mean", torch.zeros(channels))
        self.register_buffer("latents_std", torch.ones(channels))

    @abstractmethod
    def encode_raw(self, frames: Tensor) -> Tensor:
        """Encodes frames (B, 3, 4T+1, H, W) to raw latents (B, C, T+1, h, w), not normalised."""

    @abstractmethod
    def decode_raw(self, latents: Tensor) -> Tensor:
        """Decodes raw latents (B, C, T+1, h, w) to frames (B, 3, 4T+1, H, W), not clamped.

        Training uses it, because a clamp has no gradient outside its range.
        """

    @abstractmethod
    def stream(self) -> VideoStream:
        """Returns a new stream that decodes latents as they arrive.

        Raises:
            TokenizerError: the decoder is not causal.
        """

    def encoder_stream(self) -> VideoEncoderStream:
        """Returns a new stream that encodes frames as they arrive.

        Raises:
            TokenizerError: the encoder is not causal, or the class defines no such stream.
        """
        raise TokenizerError(f"{type(self).__name__} defines no encoder_stream; define one, or encode whole clips")

    def encode(self, frames: Tensor) -> Tensor:
        """Encodes frames (B, 3, 4T+1, H, W) float in [-1, 1] to normalised latents (B, C, T+1, h, w).

        Raises:
            TokenizerError: the number of frames is not 4T+1, or a side is not a multiple of `spatial_stride`.
        """
        self.check_frames(frames)
        return self.normalise(self.encode_raw(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes normalised latents (B, C, T+1, h, w) to frames (B, 3, 4T+1, H, W) in [-1, 1]."""
        self.check_latents(latents)
        return self.decode_raw(self.denormalise(latents)).clamp(-1, 1)

    def normalise(self, raw: Tensor) -> Tensor:
        """Normalises raw latents (B, C, ...) to mean 0 and standard deviation 1 per channel over the training data."""
        return (raw - self._per_channel(self.latents_mean, raw)) / self._per_channel(self.latents_std, raw)

    def denormalise(self, latents: Tensor) -> Tensor:
        """Inverts `normalise`; latents (B, C, ...)."""
        return latents * self._per_channel(self.latents_std, latents) + self._per_channel(self.latents_mean, latents)

    @staticmethod
    def _per_channel(values: Tensor, like: Tensor) -> Tensor:
        """Reshapes values (C,) to broadcast over (B, C, ...)."""
        return values.to(like.dtype).view(-1, *[1] * (like.dim() - 2))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Stores the mean (C,) and the standard deviation (C,) of raw latents, as `LatentStatistics` measures them.

        Raises:
            TokenizerError: the number of channels is wrong, or a channel does not vary or is not finite.
        """
        if mean.shape != (self.channels,) or std.shape != (self.channels,):
            raise TokenizerError(
                f"latent statistics need {self.channels} channels, got {tuple(mean.shape)} and {tuple(std.shape)}"
            )
        if not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
            raise TokenizerError("latent statistics must be finite with a standard deviation above 0 in every channel")
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)

    def chunks(self, frames: int) -> int:
        """Returns T+1, the number of latents of a clip of 4T+1 frames.

        Raises:
            TokenizerError: the number of frames is not 4T+1.
        """
        if frames < 1 or (frames - 1) % self.temporal_stride:
            nearest = self.temporal_stride * (max(frames - 1, 0) // self.temporal_stride) + 1
            raise TokenizerError(
                f"a clip must have {self.temporal_stride}T+1 frames, got {frames}; cut it to {nearest} first"
            )
        return 1 + (frames - 1) // self.temporal_stride

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the grid (h, w) of the latents of frames of `size` (H, W).

        Raises:
            TokenizerError: a side is not a multiple of `spatial_stride`.
        """
        if size[0] % self.spatial_stride or size[1] % self.spatial_stride:
            raise TokenizerError(
                f"frames must be multiples of {self.spatial_stride} pixels high and wide, got {size[0]}x{size[1]}"
            )
        return size[0] // self.spatial_stride, size[1] // self.spatial_stride

    def check_frames(self, frames: Tensor) -> None:
        """Raises `TokenizerError` unless frames are float of shape (B, 3, 4T+1, H, W)."""
        self.check_frame_shape(frames)
        self.chunks(frames.shape[2])

    def check_frame_shape(self, frames: Tensor) -> tuple[int, int]:
        """Returns the grid (h, w) of the latents of frames (B, 3, n, H, W), n > 0.

        Raises:
            TokenizerError: frames are not float of this shape, or a side is not a multiple of `spatial_stride`.
        """
        if frames.dim() != 5 or frames.shape[1] != 3 or frames.shape[2] == 0 or not frames.is_floating_point():
            raise TokenizerError(
                f"frames must be float of shape (batch, 3, time, height, width), got {frames.dtype} "
                f"{tuple(frames.shape)}"
            )
        return self.grid((frames.shape[3], frames.shape[4]))

    def check_latents(self, latents: Tensor) -> None:
        """Raises `TokenizerError` unless latents have shape (B, C, n, h, w), n > 0."""
        if latents.dim() != 5 or latents.shape[1] != self.channels or latents.shape[2] == 0:
            raise TokenizerError(
                f"latents must be (batch, {self.channels}, chunks, height, width), got {tuple(latents.shape)}"
            )


class LatentStatistics:
    """Mean and standard deviation per channel of raw latents, accumulated over batches in double precision."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, raw: Tensor) -> None:
        """Adds a batch of raw latents (B, C, ...)."""
        values = raw.detach().double().cpu().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.total += values.sum(1)
        self.squares += values.square().sum(1)

    def mean_and_std(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns the mean (C,) and the standard deviation (C,) in float32 over all ranks; every rank must call it.

        Args:
            device: Device on which ranks can all-reduce: their accelerator, if they train on one.

        Raises:
            TokenizerError: `update` was never called.
        """
        sums = torch.stack([torch.full_like(self.total, self.count), self.total, self.squares])
        count, total, squares = sum_over_ranks(sums.to(device)).cpu()
        if not count[0]:
            raise TokenizerError("no latents were seen, so their statistics are unknown; call update first")
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        return mean.float(), variance.sqrt().float()
