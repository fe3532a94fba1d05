"""A small causal codec that works at the frame rate: it trains on a CPU and decodes with no delay.

Frame i looks at the samples of one window, `[i*hop, i*hop + window)`, as a log-magnitude spectrum; causal ConvNeXt
blocks and a residual quantiser turn it into K codes; causal ConvNeXt blocks turn codes back into the magnitude and
phase of the same window (the head of Vocos: Siuzdak 2023, arXiv 2306.00814, section 3.2); windows overlap and add.

Since frame i's window *starts* at its own hop, the samples `[i*hop, (i+1)*hop)` are finished once frame i is known: the
decoder adds no delay. In return the encoder looks `window - hop` samples ahead (60 ms at the demo's numbers), so the
codes of what is heard come that much later; answers are generated, not encoded.
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
    """Depthwise convolution over the past, then an MLP per frame, added to the input (Liu et al. 2022, 2201.03545)."""

    def __init__(self, width: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.past = kernel - 1
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, n, D), past (B, kernel-1, D) -> the same for the next frames."""
        seen = torch.cat([past, x], 1)
        y = self.depthwise(seen.transpose(1, 2)).transpose(1, 2)
        y = self.down(F.gelu(self.up(self.norm(y))))
        return x + self.scale * y, seen[:, seen.shape[1] - self.past :]


class CausalStack(nn.Module):
    """Linear, ConvNeXt blocks, norm, linear. Frame i sees frames <= i; before frame 0 lie zeros."""

    def __init__(self, inputs: int, width: int, outputs: int, blocks: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.width, self.past = width, kernel - 1
        self.enter = nn.Linear(inputs, width)
        self.enter_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(CausalConvNeXtBlock(width, kernel, expansion) for _ in range(blocks))
        self.leave_norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, outputs)

    def start(self, batch: int, like: Tensor) -> list[Tensor]:
        """What every block has seen before frame 0."""
        return [like.new_zeros(batch, self.past, self.width) for _ in self.blocks]

    def forward(self, x: Tensor, past: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x (B, n, inputs) -> (B, n, outputs), and what the next frames must know."""
        x = self.enter_norm(self.enter(x))
        seen = []
        for block, before in zip(self.blocks, past, strict=True):
            x, after = block(x, before)
            seen.append(after)
        return self.leave(self.leave_norm(x)), seen


class Spectrum(nn.Module):
    """Windows that start at their own hop: analysis, and synthesis by overlap-add that carries its tail.

    Attributes:
        hop: Samples from one window to the next.
        window_size: Samples in a window, a multiple of `hop`.
        bins: window_size // 2 + 1.
    """

    window: Tensor

    def __init__(self, hop: int, window_size: int) -> None:
        super().__init__()
        if window_size % hop or window_size < 2 * hop:
            raise ValueError(f"a window of {window_size} samples must be a multiple (2 or more) of the hop, {hop}")
        self.hop, self.window_size, self.bins = hop, window_size, window_size // 2 + 1
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        # Sum of the squared windows over one sample in the middle of a long audio, for dividing.
        self.full = float(self.window.square().sum() / hop)

    @property
    def tail(self) -> int:
        """Samples that a frame's window reaches beyond its own hop."""
        return self.window_size - self.hop

    def analyse(self, waveform: Tensor) -> Tensor:
        """Waveform (B, n*hop) -> complex (B, n, bins); beyond the end lie zeros."""
        return self.analyse_windows(F.pad(waveform, (0, self.tail)))

    def analyse_windows(self, waveform: Tensor) -> Tensor:
        """Waveform (B, n*hop + tail) -> complex (B, n, bins)."""
        return torch.fft.rfft(waveform.unfold(1, self.window_size, self.hop) * self.window)

    def start(self, batch: int, like: Tensor) -> Tensor:
        """(B, 2, tail): the audio, and the sum of squared windows, that earlier frames left for the next hops."""
        return like.new_zeros(batch, 2, self.tail)

    def synthesise(self, spectrum: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """Complex (B, n, bins) and the tail before -> waveform (B, n*hop) and the tail after."""
        batch, codec_frames, _ = spectrum.shape
        parts = torch.fft.irfft(spectrum, n=self.window_size) * self.window
        both = torch.stack([parts, self.window.square().expand_as(parts)], 1)
        added = self._overlap_add(both.reshape(2 * batch, codec_frames, -1)).view(batch, 2, -1)
        added = added + F.pad(tail, (0, added.shape[2] - self.tail))
        done, tail = added[:, :, : codec_frames * self.hop], added[:, :, codec_frames * self.hop :]
        # In the first hops few windows overlap; the floor keeps their edge from being blown up.
        return done[:, 0] / done[:, 1].clamp(min=0.2 * self.full), tail

    def _overlap_add(self, parts: Tensor) -> Tensor:
        """(N, n, window) -> (N, n*hop + tail)."""
        codec_frames = parts.shape[1]
        size = codec_frames * self.hop + self.tail
        columns = parts.transpose(1, 2)
        return F.fold(columns, (1, size), (1, self.window_size), stride=(1, self.hop)).view(parts.shape[0], size)


@register("stft_codec", by="load")
class StftCodec(AudioCodec):
    """The codec: spectrum -> encoder -> residual quantiser -> decoder -> spectrum."""

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
            window: Samples that a frame analyses and synthesises; a multiple of hop.
            codebooks: K.
            vocabulary: V.
            code_width: Width of the codebooks' entries.
            width: Width of encoder and decoder.
            expansion: Of the MLP in a block.
            encoder_blocks: ConvNeXt blocks before the quantiser.
            decoder_blocks: ConvNeXt blocks after it.
            kernel: Frames that a block's convolution sees.
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
        """Waveform (B, n*hop) -> vectors (B, n, code_width), before the quantiser."""
        self.codec_frames(waveform)
        return self._embed(self.spectrum.analyse(waveform.float()), None)[0]

    def _embed(self, spectrum: Tensor, past: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """Complex (B, n, bins) -> vectors (B, n, code_width), and what the next frames must know."""
        # About zero mean and unit spread over speech: log10 of magnitudes from 1e-3 (silence) to 1e2.
        features = torch.log10(spectrum.abs() + 1e-3) + 1
        return self.encoder(features, self.encoder.start(len(features), features) if past is None else past)

    def synthesise(self, vectors: Tensor) -> Tensor:
        """Vectors (B, n, code_width) -> waveform (B, n*hop)."""
        return self._synthesise(vectors, self._start(vectors))[0]

    def forward(self, waveform: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized | None]:
        """For training: waveform (B, n*hop) -> its reconstruction and what the quantiser did (`None` without it)."""
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

    def _start(self, vectors: Tensor) -> tuple[list[Tensor], Tensor]:
        batch = vectors.shape[0]
        return self.decoder.start(batch, vectors), self.spectrum.start(batch, vectors)

    def _synthesise(
        self, vectors: Tensor, state: tuple[list[Tensor], Tensor]
    ) -> tuple[Tensor, tuple[list[Tensor], Tensor]]:
        past, tail = state
        out, past = self.decoder(vectors, past)
        log_magnitude, phase = out.float().chunk(2, -1)
        # Clipped as in Vocos: exp() of an untrained head must not overflow.
        magnitude = log_magnitude.clamp(max=5.0).exp()
        waveform, tail = self.spectrum.synthesise(torch.polar(magnitude, phase), tail)
        return waveform, (past, tail)


class StftStream(AudioStream):
    """Carries the convolutions' past and the overlap-add tail from push to push."""

    def __init__(self, codec: StftCodec) -> None:
        self._codec = codec
        self._state: tuple[list[Tensor], Tensor] | None = None

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        self._codec.check_codes(codes)
        vectors = self._codec.quantizer.decode(codes)
        state = self._codec._start(vectors) if self._state is None else self._state
        waveform, self._state = self._codec._synthesise(vectors, state)
        return waveform


class StftEncoderStream(AudioEncoderStream):
    """Carries the convolutions' past from push to push."""

    _codec: StftCodec
    _past: list[Tensor] | None = None

    def _encode(self, waveform: Tensor) -> Tensor:
        spectrum = self._codec.spectrum.analyse_windows(waveform.float())
        vectors, self._past = self._codec._embed(spectrum, self._past)
        return self._codec.quantizer.encode(vectors)
