"""A small causal codec that works at the codec frame rate: it trains on a CPU and decodes with no delay.

Codec frame i is computed from the log-magnitude spectrum of one window of samples, `[i*hop, i*hop + window)`. Causal
ConvNeXt blocks and a residual quantiser turn it into K codes; causal ConvNeXt blocks turn the codes back into the
magnitude and phase of the same window (the head of Vocos: Siuzdak 2023, arXiv 2306.00814, section 3.2), and overlapping
windows are added.

The window of codec frame i *starts* at its own hop, so the samples `[i*hop, (i+1)*hop)` are complete once frame i is
decoded: the decoder adds no delay. In return the encoder looks `window - hop` samples ahead (60 ms in the demo codec),
which delays the codes of the initiator's audio; answers are generated, not encoded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidchat.registry import register
from vidchat.tokenizers.audio import AudioCodec, AudioEncoderStream, AudioStream
from vidchat.tokenizers.quantizer import Quantized, ResidualQuantizer


class CausalConvNeXtBlock(nn.Module):
    """Residual block: causal depthwise convolution, then an MLP per codec frame (Liu et al. 2022, arXiv 2201.03545)."""

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.past = kernel - 1
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output (B, n, D) and the `past` of the next call; x (B, n, D), past (B, kernel-1, D)."""
        extended = torch.cat([past, x], 1)
        y = self.depthwise(extended.transpose(1, 2)).transpose(1, 2)
        y = self.down(F.gelu(self.up(self.norm(y))))
        return x + self.scale * y, extended[:, extended.shape[1] - self.past :]


class CausalStack(nn.Module):
    """Linear layer, ConvNeXt blocks, norm, linear layer. Output i depends on inputs <= i, with zeros before input 0."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.width, self.past = width, kernel - 1
        self.enter = nn.Linear(inputs, width)
        self.enter_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(CausalConvNeXtBlock(width, kernel, expansion) for _ in range(blocks))
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def initial_past(self, batch: int, like: Tensor) -> list[Tensor]:
        """Returns the `past` (B, kernel-1, D) of every block before codec frame 0: zeros of the type of `like`."""
        return [like.new_zeros(batch, self.past, self.width) for _ in self.blocks]

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Returns the output (B, n, outputs) and the `past` of the next call; x (B, n, inputs)."""
        x = self.enter_norm(self.enter(x))
        next_past = []
        for block, block_past in zip(self.blocks, past, strict=True):
            x, block_past = block(x, block_past)
            next_past.append(block_past)
        return self.leave(self.leave_norm(x)), next_past


class Spectrum(nn.Module):
    """Short-time Fourier transform whose windows start at their own hop, with synthesis by streaming overlap-add.

    Attributes:
        hop: Samples from one window to the next.
        window_size: Samples in a window, a multiple of `hop`.
        bins: Frequency bins, window_size // 2 + 1.
    """

    window: Tensor

    def __init__(self, hop: int, window_size: int) -> None:
        super().__init__()
        if window_size % hop or window_size < 2 * hop:
            raise ValueError(f"a window of {window_size} samples must be a multiple (2 or more) of the hop, {hop}")
        self.hop, self.window_size, self.bins = hop, window_size, window_size // 2 + 1
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        # Sum of the squared windows over one sample in the middle of a long waveform.
        self.window_power = float(self.window.square().sum() / hop)

    @property
    def tail(self) -> int:
        """Number of samples that a window reaches beyond its own hop."""
        return self.window_size - self.hop

    def analyse(self, waveform: Tensor) -> Tensor:
        """Returns the spectrum, complex (B, n, bins), of a waveform (B, n*hop) that is padded with zeros at its end."""
        return self.analyse_windows(F.pad(waveform, (0, self.tail)))

    def analyse_windows(self, waveform: Tensor) -> Tensor:
        """Returns the spectrum, complex (B, n, bins), of a waveform (B, n*hop + tail)."""
        return torch.fft.rfft(waveform.unfold(1, self.window_size, self.hop) * self.window)

    def initial_tail(self, batch: int, like: Tensor) -> Tensor:
        """Returns zeros (B, 2, tail): the waveform and the sum of squared windows carried over from earlier windows."""
        return like.new_zeros(batch, 2, self.tail)

    def synthesise(self, spectrum: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the waveform (B, n*hop) and the tail of the next call; spectrum complex (B, n, bins)."""
        batch, codec_frames, _ = spectrum.shape
        windows = torch.fft.irfft(spectrum, n=self.window_size) * self.window
        both = torch.stack([windows, self.window.square().expand_as(windows)], 1)
        added = self._overlap_add(both.reshape(2 * batch, codec_frames, -1)).view(batch, 2, -1)
        added = added + F.pad(tail, (0, added.shape[2] - self.tail))
        complete, tail = added[:, :, : codec_frames * self.hop], added[:, :, codec_frames * self.hop :]
        # Few windows overlap in the first hops; the floor avoids amplifying their edges.
        return complete[:, 0] / complete[:, 1].clamp(min=0.2 * self.window_power), tail

    def _overlap_add(self, windows: Tensor) -> Tensor:
        """Adds overlapping windows (N, n, window_size) to waveforms (N, n*hop + tail)."""
        codec_frames = windows.shape[1]
        size = codec_frames * self.hop + self.tail
        columns = windows.transpose(1, 2)
        return F.fold(columns, (1, size), (1, self.window_size), stride=(1, self.hop)).view(windows.shape[0], size)


@register("stft_codec", by="load")
class StftCodec(AudioCodec):
    """The codec: spectrum, encoder, residual quantiser, decoder, spectrum."""

    def __init__(
        self,
        sample_rate: int = 16000,
        hop: int = 320,
        window: int = 1280,
        codebooks: int = 4,
        vocabulary: int = 256,
        code_width: int = 64,
        width: int = 256,
        expansion: int = 3,
        encoder_blocks: int = 3,
        decoder_blocks: int = 5,
        kernel: int = 7,
        quantizer_dropout: float = 0.0,
    ) -> None:
        """
        Args:
            sample_rate: Samples per second.
            hop: Samples per codec frame.
            window: Samples per analysis and synthesis window; a multiple of `hop`.
            codebooks: K, the number of codebooks.
            vocabulary: V, the number of entries in each codebook.
            code_width: Width of the codebook entries.
            width: Width of the encoder and the decoder.
            expansion: Ratio of the hidden width of a block's MLP to `width`.
            encoder_blocks: Number of ConvNeXt blocks before the quantiser.
            decoder_blocks: Number of ConvNeXt blocks after the quantiser.
            kernel: Kernel size of the convolutions, in codec frames.
            quantizer_dropout: See `ResidualQuantizer`.
        """
        super().__init__()
        self._config: dict[str, Any] = {
            "sample_rate": sample_rate, "hop": hop, "window": window, "codebooks": codebooks, "vocabulary": vocabulary,
            "code_width": code_width, "width": width, "expansion": expansion, "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks, "kernel": kernel, "quantizer_dropout": quantizer_dropout,
        }  # fmt: skip
        self.sample_rate, self.hop = sample_rate, hop
        self.codebooks, self.vocabulary = codebooks, vocabulary
        self.spectrum = Spectrum(hop, window)
        self.look_ahead = self.spectrum.tail
        self.encoder = CausalStack(self.spectrum.bins, width, code_width, encoder_blocks, kernel, expansion)
        self.quantizer = ResidualQuantizer(codebooks, vocabulary, code_width, dropout=quantizer_dropout)
        self.decoder = CausalStack(code_width, width, 2 * self.spectrum.bins, decoder_blocks, kernel, expansion)

    def config(self) -> dict[str, Any]:
        return dict(self._config)

    def embed(self, waveform: Tensor) -> Tensor:
        """Returns the vectors (B, n, code_width) that enter the quantiser; waveform (B, n*hop)."""
        self.codec_frames(waveform)
        return self._embed(self.spectrum.analyse(waveform.float()), None)[0]

    def _embed(self, spectrum: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Returns vectors (B, n, code_width) and the `past` of the next call; spectrum complex (B, n, bins)."""
        # log10 of magnitudes from 1e-3 (silence) to 1e2: roughly zero mean and unit variance over speech.
        features = torch.log10(spectrum.abs() + 1e-3) + 1
        return self.encoder(features, self.encoder.initial_past(len(features), features) if past is None else past)

    def synthesise(self, vectors: Tensor) -> Tensor:
        """Returns the waveform (B, n*hop) of vectors (B, n, code_width)."""
        return self._synthesise(vectors, self._initial_state(vectors))[0]

    def forward(self, waveform: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized | None]:
        """Returns the reconstruction (B, n*hop) of a waveform (B, n*hop), and the quantiser's output if it is used."""
        vectors = self.embed(waveform)
        if not quantize:
            return self.synthesise(vectors), None
        quantized = self.quantizer(vectors)
        return self.synthesise(quantized.vectors), quantized

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        return self.quantizer.encode(self.embed(waveform))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self.synthesise(self.quantizer.decode(codes))

    def stream(self) -> AudioStream:
        return StftStream(self)

    def encoder_stream(self) -> AudioEncoderStream:
        return StftEncoderStream(self)

    def _initial_state(self, vectors: Tensor) -> tuple[list[Tensor], Tensor]:
        batch = vectors.shape[0]
        return self.decoder.initial_past(batch, vectors), self.spectrum.initial_tail(batch, vectors)

    def _synthesise(
        self, vectors: Tensor, state: tuple[list[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
        past, tail = state
        out, past = self.decoder(vectors, past)
        log_magnitude, phase = out.float().chunk(2, -1)
        # Clamped as in Vocos, so that exp() of an untrained head does not overflow.
        magnitude = log_magnitude.clamp(max=5.0).exp()
        waveform, tail = self.spectrum.synthesise(torch.polar(magnitude, phase), tail)
        return waveform, (past, tail)


class StftStream(AudioStream):
    """Decodes with the convolutions' past and the overlap-add tail as its state."""

    def __init__(self, codec: StftCodec) -> None:
        self._codec = codec
        self._state: tuple[list[Tensor], Tensor] | None = None

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        self._codec.check_codes(codes)
        vectors = self._codec.quantizer.decode(codes)
        state = self._codec._initial_state(vectors) if self._state is None else self._state
        waveform, self._state = self._codec._synthesise(vectors, state)
        return waveform


class StftEncoderStream(AudioEncoderStream):
    """Encodes with the convolutions' past as its state."""

    _codec: StftCodec
    _past: list[Tensor] | None = None

    def _encode(self, waveform: Tensor) -> Tensor:
        spectrum = self._codec.spectrum.analyse_windows(waveform.float())
        vectors, self._past = self._codec._embed(spectrum, self._past)
        return self._codec.quantizer.encode(vectors)
