"""Waveform <-> codes: what every audio codec of the package can do, and nothing about how."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from vidchat.tokenizers.weights import SavedTokenizer, TokenizerError


class AudioStream(ABC):
    """One answer being decoded as its codes arrive. Holds what must be carried from one push to the next."""

    @abstractmethod
    def push(self, codes: Tensor) -> Tensor:
        """Codes (B, n, K), the next n frames -> waveform (B, n*hop), the sound of exactly these frames.

        Everything pushed, laid end to end, equals `decode` of all codes at once.
        """


class AudioCodec(SavedTokenizer):
    """A causal neural codec: n frames of K codes are n*hop samples, and a frame's samples need no later frame.

    Attributes:
        sample_rate: Samples per second.
        hop: Samples in one codec frame.
        codebooks: K, codes per frame, coarse to fine.
        vocabulary: V, entries in each codebook; codes are 0 .. V-1.
    """

    sample_rate: int
    hop: int
    codebooks: int
    vocabulary: int

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

    def frames(self, waveform: Tensor) -> int:
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
