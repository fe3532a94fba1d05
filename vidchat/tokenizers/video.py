"""Pixels <-> latents: what every video tokenizer of the package can do, and nothing about how.

A clip is 4T+1 frames (4 stands for `temporal_stride`). Frame 0 is the reference and latent 0; frames
`4(t-1)+1 .. 4t` are latent t. Everything is causal: latent t needs no later frame, and the frames of chunk t need
no later latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from vidchat.runtime.distributed import sum_over_ranks
from vidchat.tokenizers.weights import SavedTokenizer, TokenizerError


class VideoStream(ABC):
    """One answer being decoded as its latents arrive. Holds what must be carried from one push to the next."""

    @abstractmethod
    def push(self, latents: Tensor) -> Tensor:
        """Latents (B, C, n, h, w), the next n chunks -> their frames (B, 3, m, H, W) in [-1, 1].

        The first chunk of the stream gives 1 frame, each later one `temporal_stride`. Everything pushed, laid end to
        end, equals `decode` of all latents at once.
        """


class VideoEncoderStream(ABC):
    """Encodes one video as its frames arrive. Holds what must be carried from one push to the next.

    Args:
        tokenizer: The tokenizer; any number of streams share its weights.
    """

    def __init__(self, tokenizer: VideoTokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: Tensor | None = None  # frames of the chunk that is not complete yet
        self._started = False

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Returns the normalised latents (B, C, m, h, w) that the next frames (B, 3, n, H, W) in [-1, 1] complete.

        The first frame completes a latent, then every `temporal_stride` frames do; n is any number, and m may be 0. All
        that is returned, laid end to end, equals `encode` of the whole video.

        Raises:
            TokenizerError: frames are not float of this shape, or a side is not a multiple of `spatial_stride`.
        """
        size = self._tokenizer.check_frame_shape(frames)
        if self._waiting is not None:
            frames = torch.cat([self._waiting, frames], dim=2)
        stride, count = self._tokenizer.temporal_stride, frames.shape[2]
        rest = count % stride if self._started else max(count - 1, 0) % stride
        whole, self._waiting = frames[:, :, : count - rest], frames[:, :, count - rest :].clone()
        if not whole.shape[2]:
            return frames.new_zeros(len(frames), self._tokenizer.channels, 0, *size)
        raw = self._encode(whole)
        self._started = True
        return self._tokenizer.normalise(raw)

    @abstractmethod
    def _encode(self, frames: Tensor) -> Tensor:
        """Returns the raw latents of the next whole chunks; the first call (not `_started`) begins with frame 0."""


class VideoTokenizer(SavedTokenizer):
    """A causal video autoencoder whose latents are normalised per channel.

    Attributes:
        channels: C, the values of one latent position.
        temporal_stride: Frames in a chunk.
        spatial_stride: Pixels along one side of a latent position; frames must be whole multiples of it.
        causal: Whether `decode` needs no later latent; only then is there a stream.
        latents_mean: (C,) buffer, kept with the weights; subtracted by `encode`, added back by `decode`.
        latents_std: (C,) buffer, likewise.
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
        """Frames (B, 3, 4T+1, H, W) -> latents (B, C, T+1, h, w) as the network makes them, not normalised."""

    @abstractmethod
    def decode_raw(self, latents: Tensor) -> Tensor:
        """The network's own latents (B, C, T+1, h, w) -> frames (B, 3, 4T+1, H, W), not clamped.

        Training uses this one: where a frame is clamped, no gradient flows.
        """

    @abstractmethod
    def stream(self) -> VideoStream:
        """A new stream that decodes latents as they arrive.

        Raises:
            TokenizerError: the decoder is not causal, so the frames of a chunk would wait for later latents.
        """

    def encoder_stream(self) -> VideoEncoderStream:
        """A new stream that encodes frames as they arrive.

        Raises:
            TokenizerError: the encoder is not causal, so the latents of a chunk would wait for later frames; or the
                class defines no such stream.
        """
        raise TokenizerError(f"{type(self).__name__} defines no encoder_stream; define one, or encode whole clips")

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, 4T+1, H, W) float in [-1, 1] -> normalised latents (B, C, T+1, h, w).

        Raises:
            TokenizerError: the number of frames is not 4T+1, or a side is not a multiple of `spatial_stride`.
        """
        self.check_frames(frames)
        return self.normalise(self.encode_raw(frames))

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, T+1, h, w) -> frames (B, 3, 4T+1, H, W) in [-1, 1]."""
        self.check_latents(latents)
        return self.decode_raw(self.denormalise(latents)).clamp(-1, 1)

    def normalise(self, raw: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...) of mean 0 and standard deviation 1 per channel, over the training frames."""
        return (raw - self._column(self.latents_mean, raw)) / self._column(self.latents_std, raw)

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latents * self._column(self.latents_std, latents) + self._column(self.latents_mean, latents)

    @staticmethod
    def _column(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like.dtype).view(-1, *[1] * (like.dim() - 2))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Stores what `LatentStatistics` measured on raw latents; both (C,).

        Raises:
            TokenizerError: a wrong number of channels, or a channel that never varies or is not finite.
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
        """T+1, the latents of a clip of this many frames; raises `TokenizerError` unless that is 4T+1."""
        if frames < 1 or (frames - 1) % self.temporal_stride:
            whole = self.temporal_stride * (max(frames - 1, 0) // self.temporal_stride) + 1
            raise TokenizerError(
                f"a clip must have {self.temporal_stride}T+1 frames, got {frames}; cut it to {whole} first"
            )
        return 1 + (frames - 1) // self.temporal_stride

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the latents of frames of `size` (H, W); raises `TokenizerError` unless they divide."""
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
        """(h, w) of the latents of frames (B, 3, n, H, W), n > 0; raises `TokenizerError` unless they are such."""
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
    """Mean and standard deviation per channel of raw latents, gathered batch by batch in double precision."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def update(self, raw: Tensor) -> None:
        """Adds raw latents (B, C, ...)."""
        values = raw.detach().double().cpu().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.total += values.sum(1)
        self.squares += values.square().sum(1)

    def mean_and_std(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """(C,) and (C,), float32, of what all ranks have seen; every rank must call it.

        Args:
            device: Where ranks can add up: their accelerator, if they train on such.

        Raises:
            TokenizerError: Nothing was seen.
        """
        sums = torch.stack([torch.full_like(self.total, self.count), self.total, self.squares])
        count, total, squares = sum_over_ranks(sums.to(device)).cpu()
        if not count[0]:
            raise TokenizerError("no latents were seen, so their statistics are unknown; call update first")
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        return mean.float(), variance.sqrt().float()
