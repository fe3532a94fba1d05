"""Waveform <-> codes: the interface that every audio codec implements."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from vidchat.tokenizers.weights import SavedTokenizer, TokenizerError


class AudioStream(ABC):
    """Decodes codes as they arrive. Holds the decoder's state between pushes."""

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Returns the waveform (B, n*hop) of the next n codec frames; codes (B, n, K).

        The concatenated waveforms of all pushes equal `decode` of all codes at once.
        """


class AudioEncoderStream(ABC):
    """Encodes a waveform as it arrives. Holds the encoder's state between pushes.

    Args:
        codec: The codec; any number of streams share its weights.
    """

    def __init__(self, codec: AudioCodec) -> None:
        self._codec = codec
        self._buffer: Tensor | None = None  # samples of codec frames that are not encoded yet
        self._started = self._finished = False

    @torch.no_grad()
    def push(self, waveform: Tensor) -> Tensor:
        """Returns the codes (B, m, K) of the codec frames that the next samples complete; waveform (B, n) in [-1, 1].

        n is any number, and m may be 0. A codec frame is complete when its `hop` samples and `look_ahead` more samples
        have arrived; the first `first_codec_frames` codec frames are encoded together. The concatenated codes of all
        pushes and of `finish` equal `encode` of the whole waveform.

        Raises:
            TokenizerError: the waveform has another shape, or the stream is finished.
        """
        if self._finished:
            raise TokenizerError("this stream is finished; encode the next waveform with a new encoder_stream()")
        if waveform.dim() != 2:
            raise TokenizerError(f"a waveform must be (batch, samples), got {tuple(waveform.shape)}")
        buffer = waveform if self._buffer is None else torch.cat([self._buffer, waveform], dim=1)
        hop, look_ahead = self._codec.hop, self._codec.look_ahead
        count = max(buffer.shape[1] - look_ahead, 0) // hop
        if not self._started and count < self._codec.first_codec_frames:
            count = 0
        self._buffer = buffer[:, count * hop :].clone()
        return self._encode_or_empty(buffer[:, : count * hop + look_ahead], count)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Ends the stream; returns the codes (B, m, K) of the buffered samples, with silence for the look-ahead.

        Samples that do not fill a codec frame are dropped. Nothing can be pushed afterwards.
        """
        if self._buffer is None:
            raise TokenizerError("there is nothing to finish; push a waveform first")
        self._finished, count = True, self._buffer.shape[1] // self._codec.hop
        complete, self._buffer = self._buffer[:, : count * self._codec.hop], None
        return self._encode_or_empty(F.pad(complete, (0, self._codec.look_ahead)), count)

    def _encode_or_empty(self, waveform: Tensor, count: int) -> Tensor:
        if not count:
            return waveform.new_zeros(len(waveform), 0, self._codec.codebooks, dtype=torch.int64)
        codes = self._encode(waveform)
        self._started = True
        return codes

    @abstractmethod
    def _encode(self, waveform: Tensor) -> Tensor:
        """Returns the codes (B, m, K) of the next m > 0 codec frames; waveform (B, m*hop + look_ahead)."""


class AudioCodec(SavedTokenizer):
    """A causal neural codec: a codec frame is K codes and `hop` samples, decoded without any later codec frame.

    Attributes:
        sample_rate: Samples per second.
        hop: Samples in one codec frame.
        codebooks: K, the number of codes per codec frame, coarse to fine.
        vocabulary: V, the number of entries in each codebook; codes are 0 .. V-1.
        look_ahead: Number of samples after the end of a codec frame that its codes depend on.
        first_codec_frames: Number of codec frames at the start of a waveform that are encoded together, because the
            first of them depend on the later ones; 1 if they do not.
    """

    sample_rate: int
    hop: int
    codebooks: int
    vocabulary: int
    look_ahead: int = 0
    first_codec_frames: int = 1

    @abstractmethod
    def encode(self, waveform: Tensor) -> Tensor:
        """Encodes a waveform (B, n*hop) float in [-1, 1] to codes (B, n, K) int64.

        Raises:
            TokenizerError: the length is not a multiple of `hop`.
        """

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Decodes codes (B, n, K) int64 to a waveform (B, n*hop) float; it may exceed [-1, 1] slightly."""

    @abstractmethod
    def stream(self) -> AudioStream:
        """Returns a new stream that decodes codes as they arrive, with no delay."""

    def encoder_stream(self) -> AudioEncoderStream:
        """Returns a new stream that encodes a waveform as it arrives, with a delay of `look_ahead` samples.

        Raises:
            TokenizerError: the class defines no such stream.
        """
        raise TokenizerError(f"{type(self).__name__} defines no encoder_stream; define one, or encode whole clips")

    def codec_frames(self, waveform: Tensor) -> int:
        """Returns n, the number of codec frames of a waveform (B, n*hop).

        Raises:
            TokenizerError: the waveform has another shape.
        """
        if waveform.dim() != 2 or waveform.shape[1] == 0 or waveform.shape[1] % self.hop:
            raise TokenizerError(
                f"a waveform must be (batch, n x {self.hop}) samples, n > 0, got {tuple(waveform.shape)}; pad or cut it"
            )
        return waveform.shape[1] // self.hop

    def check_codes(self, codes: Tensor) -> None:
        """Raises `TokenizerError` unless codes are integers of shape (B, n, K)."""
        if codes.dim() != 3 or codes.shape[2] != self.codebooks or codes.is_floating_point():
            raise TokenizerError(
                f"codes must be integers (batch, codec frames, {self.codebooks}), got {codes.dtype} "
                f"{tuple(codes.shape)}"
            )
