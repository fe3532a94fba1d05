"""Waveform <-> codes: what every audio codec of the package can do, and nothing about how."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vidchat.tokenizers.weights import SavedTokenizer, TokenizerError


class AudioStream(ABC):
    """One answer being decoded as its codes arrive. Holds what must be carried from one push to the next."""

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Codes (B, n, K), the next n frames -> waveform (B, n*hop), the audio of exactly these frames.

        Everything pushed, laid end to end, equals `decode` of all codes at once.
        """


class AudioEncoderStream(ABC):
    """Encodes one waveform as it arrives. Holds what must be carried from one push to the next.

    Args:
        codec: The codec; any number of streams share its weights.
    """

    def __init__(self, codec: AudioCodec) -> None:
        self._codec = codec
        self._waiting: Tensor | None = None  # samples whose codec frames are not encoded yet, and those after them
        self._started = self._finished = False

    @torch.no_grad()
    def push(self, waveform: Tensor) -> Tensor:
        """Returns the codes (B, m, K) that the next samples, a waveform (B, n) in [-1, 1], make known.

        n is any number, and m may be 0: a codec frame's codes are known once its `hop` samples and `look_ahead` more
        have come, the first ones together once those of `first_codec_frames` codec frames have. All that is
        returned by `push` and `finish`, laid end to end, equals `encode` of the whole waveform.

        Raises:
            TokenizerError: the waveform has another shape, or the stream is finished.
        """
        if self._finished:
            raise TokenizerError("this stream is finished; encode the next waveform with a new encoder_stream()")
        if waveform.dim() != 2:
            raise TokenizerError(f"a waveform must be (batch, samples), got {tuple(waveform.shape)}")
        waiting = waveform if self._waiting is None else torch.cat([self._waiting, waveform], dim=1)
        hop, ahead = self._codec.hop, self._codec.look_ahead
        count = max(waiting.shape[1] - ahead, 0) // hop
        if not self._started and count < self._codec.first_codec_frames:
            count = 0
        self._waiting = waiting[:, count * hop :].clone()
        return self._codes(waiting[:, : count * hop + ahead], count)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Returns the codes (B, m, K) that were waiting for later samples, as `encode` makes them at a waveform's end.

        Samples that do not fill a codec frame have no codes. Nothing can be pushed afterwards.
        """
        if self._waiting is None:
            raise TokenizerError("there is nothing to finish; push a waveform first")
        self._finished, count = True, self._waiting.shape[1] // self._codec.hop
        whole, self._waiting = self._waiting[:, : count * self._codec.hop], None
        return self._codes(F.pad(whole, (0, self._codec.look_ahead)), count)

    def _codes(self, waveform: Tensor, count: int) -> Tensor:
        if not count:
            return waveform.new_zeros(len(waveform), 0, self._codec.codebooks, dtype=torch.int64)
        codes = self._encode(waveform)
        self._started = True
        return codes

    @abstractmethod
    def _encode(self, waveform: Tensor) -> Tensor:
        """Returns the codes (B, m, K) of the next m > 0 codec frames; waveform (B, m*hop + look_ahead)."""


class AudioCodec(SavedTokenizer):
    """A causal neural codec: n codec frames of K codes are n*hop samples, and a frame's samples need no later frame.

    Attributes:
        sample_rate: Samples per second.
        hop: Samples in one codec frame.
        codebooks: K, codes per frame, coarse to fine.
        vocabulary: V, entries in each codebook; codes are 0 .. V-1.
        look_ahead: Number of samples after a codec frame's own that its codes depend on.
        first_codec_frames: Number of codec frames at a waveform's beginning that are encoded together, because the
            first of them depend on the others; 1 where none do.
    """

    sample_rate: int
    hop: int
    codebooks: int
    vocabulary: int
    look_ahead: int = 0
    first_codec_frames: int = 1

    @abstractmethod
    def encode(self, waveform: Tensor) -> Tensor:
        """Waveform (B, n*hop) float in [-1, 1] -> codes (B, n, K) int64.

        Raises:
            TokenizerError: the length is not a multiple of `hop`.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, n, K) int64 -> waveform (B, n*hop) float, in [-1, 1] but for small overshoots."""

    @abstractmethod
    def stream(self) -> AudioStream:
        """A new stream that decodes codes as they arrive, with no delay."""

    def encoder_stream(self) -> AudioEncoderStream:
        """A new stream that encodes a waveform as it arrives, `look_ahead` samples behind it.

        Raises:
            TokenizerError: the class defines no such stream.
        """
        raise TokenizerError(f"{type(self).__name__} defines no encoder_stream; define one, or encode whole clips")

    def codec_frames(self, waveform: Tensor) -> int:
        """n, the frames of a waveform (B, n*hop); raises `TokenizerError` for any other shape."""
        if waveform.dim() != 2 or waveform.shape[1] == 0 or waveform.shape[1] % self.hop:
            raise TokenizerError(
                f"a waveform must be (batch, n x {self.hop}) samples, n > 0, got {tuple(waveform.shape)}; pad or cut it"
            )
        return waveform.shape[1] // self.hop

    def check_codes(self, codes: Tensor) -> None:
        """Raises `TokenizerError` unless codes are integers of shape (B, n, K)."""
        if codes.dim() != 3 or codes.shape[2] != self.codebooks or codes.is_floating_point():
            raise TokenizerError(
                f"codes must be integers (batch, frames, {self.codebooks}), got {codes.dtype} {tuple(codes.shape)}"
            )
