"""EnCodec and Mimi: transformers' models and published weights, with streaming encoders and decoders.

EnCodec: Défossez et al. 2022, arXiv 2210.13438 (24 kHz: 75 codec frames/s, 12 per chunk of 160 ms, up to 32 codebooks
of 1024). Mimi: Défossez et al. 2024, arXiv 2410.00037, section 3.3 (12.5 codec frames/s, 2 per chunk, up to 32
codebooks of 2048). Both are causal. A stream keeps the state of each layer (the last inputs of a convolution, the
overlapping outputs of a transposed convolution, the LSTM's state, the keys and values of attention), which transformers
does not do for both models. The cost of a push does not depend on the length of the stream.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncodecConfig, EncodecModel, MimiConfig, MimiModel, PretrainedConfig

from vidchat.registry import register
from vidchat.tokenizers.audio import AudioCodec, AudioEncoderStream, AudioStream
from vidchat.tokenizers.weights import TokenizerError, load_error


class PretrainedCodec(AudioCodec):
    """Base class of EnCodec and Mimi: a model of transformers whose first K codebooks are used.

    It computes in the type of its weights, e.g. bfloat16; waveforms are returned as float32.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    model_class: ClassVar[Any]

    def __init__(self, model: Any, codebooks: int) -> None:
        """
        Args:
            model: The transformers model with its weights.
            codebooks: K, the number of codebooks to use. Fewer codebooks give a lower bit rate.
        """
        super().__init__()
        available = model.config.num_quantizers
        if not 1 <= codebooks <= available:
            raise TokenizerError(f"codebooks={codebooks} must be in 1 .. {available} for this {type(model).__name__}")
        self._require_causal(model.config)
        self.model = model
        self.sample_rate = model.config.sampling_rate
        self.hop = round(self.sample_rate / model.config.frame_rate)
        self.codebooks, self.vocabulary = codebooks, model.config.codebook_size

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, codebooks: int, dtype: str = "float32") -> Self:
        """Loads published weights from the Hub or from a folder in transformers' format, in evaluation mode.

        Args:
            name_or_path: Hub name or folder.
            codebooks: K, the number of codebooks to use.
            dtype: Type of the weights and of the computation.

        Raises:
            TokenizerError: there is no such model, or the Hub cannot be reached.
        """
        try:
            model = cls.model_class.from_pretrained(name_or_path, dtype=getattr(torch, dtype), use_safetensors=True)
        except (OSError, ValueError) as error:
            raise load_error(str(name_or_path), cls.model_class.__name__, None, error) from error
        return cls(model, codebooks).eval()

    def config(self) -> dict[str, Any]:
        model = json.loads(self.model.config.to_json_string(use_diff=True))
        # The version of the library that saved the model does not affect the tokens.
        model.pop("transformers_version", None)
        return {"codebooks": self.codebooks, "model": model}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(cls.model_class(cls.config_class.from_dict(config["model"])), config["codebooks"])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self._decode(codes).float()

    @torch.no_grad()
    def encode(self, waveform: Tensor) -> Tensor:
        self.codec_frames(waveform)
        return self._encode(waveform[:, None].to(self.model.dtype))

    def stream(self) -> AudioStream:
        return PretrainedStream(self)

    def encoder_stream(self) -> AudioEncoderStream:
        return PretrainedEncoderStream(self)

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """Decodes all codes (B, n, K) with the transformers model; returns the waveform (B, n*hop)."""

    @abstractmethod
    def _decode_next(self, codes: Tensor, state: _StreamState) -> Tensor:
        """Decodes the next codes (B, n, K) of a stream; returns the waveform (B, n*hop)."""

    @abstractmethod
    def _encode(self, waveform: Tensor) -> Tensor:
        """Encodes a whole waveform (B, 1, n*hop) with the transformers model; returns codes (B, n, K)."""

    @abstractmethod
    def _encode_next(self, waveform: Tensor, state: _StreamState) -> Tensor:
        """Encodes the next samples (B, 1, n*hop) of a stream; returns codes (B, n, K)."""

    @staticmethod
    def _require_causal(config: Any) -> None:
        if not config.use_causal_conv or config.trim_right_ratio != 1.0 or config.audio_channels != 1:
            raise TokenizerError(
                "only causal codecs of one channel can stream, and this codec has "
                f"use_causal_conv={config.use_causal_conv}, trim_right_ratio={config.trim_right_ratio}, "
                f"audio_channels={config.audio_channels}; use encodec_24khz or mimi"
            )


@register("encodec", by="from_pretrained")
class EncodecCodec(PretrainedCodec):
    """EnCodec 24 kHz.

    Its convolutions pad by reflection, so the first codec frames depend on later ones among the first 7. The first push
    of a decoder must hold 7 codec frames or more (a chunk holds 12) unless it is the only push; an encoder buffers
    them.
    """

    config_class = EncodecConfig
    model_class = EncodecModel

    def __init__(self, model: Any, codebooks: int) -> None:
        super().__init__(model, codebooks)
        rate = self.hop  # inputs of a layer per codec frame
        for layer in model.encoder.modules():
            if isinstance(getattr(layer, "conv", None), nn.Conv1d):
                if layer.pad_mode == "reflect":  # the padding mirrors padding_total inputs about the first
                    self.first_codec_frames = max(self.first_codec_frames, -(-(int(layer.padding_total) + 1) // rate))
                rate //= layer.conv.stride[0]

    def _encode(self, waveform: Tensor) -> Tensor:
        return self._quantize(self.model.encoder(waveform))

    def _encode_next(self, waveform: Tensor, state: _StreamState) -> Tensor:
        return self._quantize(state.run(self.model.encoder.layers, waveform))

    def _quantize(self, residual: Tensor) -> Tensor:
        """Returns the codes (B, n, K) of vectors (B, D, n)."""
        codes: list[Tensor] = []
        for level in self.model.quantizer.layers[: self.codebooks]:
            codes.append(level.encode(residual))
            residual = residual - level.decode(codes[-1])
        return torch.stack(codes, -1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decoder(self.model.quantizer.decode(codes.permute(2, 0, 1)))[:, 0]

    def _decode_next(self, codes: Tensor, state: _StreamState) -> Tensor:
        return state.run(self.model.decoder.layers, self.model.quantizer.decode(codes.permute(2, 0, 1)))[:, 0]


@register("mimi", by="from_pretrained")
class MimiCodec(PretrainedCodec):
    """Mimi. The first codebook is semantic, the others are acoustic."""

    config_class = MimiConfig
    model_class = MimiModel

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves and casts the module, and drops the copies of codebooks that transformers caches outside of buffers."""
        super()._apply(fn, recurse)
        for module in self.modules():
            if "_embed" in vars(module):
                vars(module)["_embed"] = None
        return self

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.model.encode(waveform, num_quantizers=self.codebooks).audio_codes.transpose(1, 2)

    def _encode_next(self, waveform: Tensor, state: _StreamState) -> Tensor:
        encoder = self.model.encoder
        x = state.run(encoder.encoder_seanet.layers, waveform)
        x = state.attend(encoder.encoder_transformer, x)
        return self.model.quantizer.encode(state.run([encoder.downsample], x), self.codebooks).permute(1, 2, 0)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes.transpose(1, 2)).audio_values[:, 0]

    def _decode_next(self, codes: Tensor, state: _StreamState) -> Tensor:
        decoder = self.model.decoder
        x = self.model.quantizer.decode(codes.transpose(1, 2))
        if decoder.upsample is not None:
            x = state.run([decoder.upsample], x)
        return state.run(decoder.decoder_seanet.layers, state.attend(decoder.decoder_transformer, x))[:, 0]


class PretrainedStream(AudioStream):
    """Decodes with the state of each layer."""

    def __init__(self, codec: PretrainedCodec) -> None:
        self._codec, self._state = codec, _StreamState()

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        self._codec.check_codes(codes)
        return self._codec._decode_next(codes, self._state).float()


class PretrainedEncoderStream(AudioEncoderStream):
    """Encodes with the state of each layer."""

    _codec: PretrainedCodec

    def __init__(self, codec: PretrainedCodec) -> None:
        super().__init__(codec)
        self._state = _StreamState()

    def _encode(self, waveform: Tensor) -> Tensor:
        return self._codec._encode_next(waveform[:, None].to(self._codec.model.dtype), self._state)


class _StreamState:
    """State of the layers of one stream.

    Layers are recognised by their attributes: the classes of EnCodec and Mimi differ in name only.
    """

    def __init__(self) -> None:
        self._states: dict[nn.Module, Any] = {}
        self._required_frames = 0  # length that the first push should have had; 0 if it was long enough
        self.attention: DynamicCache | None = None

    def run(self, layers: Any, x: Tensor) -> Tensor:
        """Runs layers on the next inputs x (B, C, n) of the stream."""
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def attend(self, transformer: Any, x: Tensor) -> Tensor:
        """Runs a transformer on the next inputs x (B, C, n); the keys and values of its window are cached."""
        if self.attention is None:
            self.attention = DynamicCache(config=transformer.config)
        hidden = transformer(x.transpose(1, 2), past_key_values=self.attention, use_cache=True)
        out: Tensor = hidden.last_hidden_state
        return out.transpose(1, 2)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        if hasattr(layer, "block"):
            shortcut: Any = layer.shortcut
            return self.run(layer.block, x) + self._layer(shortcut, x)
        if hasattr(layer, "lstm"):
            return self._lstm(layer, x)
        inner = getattr(layer, "conv", None)
        if isinstance(inner, nn.ConvTranspose1d):
            return self._transposed(inner, x)
        if isinstance(inner, nn.Conv1d):
            return self._convolution(layer, inner, x)
        return layer(x)

    def _convolution(self, layer: Any, inner: nn.Conv1d, x: Tensor) -> Tensor:
        pad = (inner.kernel_size[0] - 1) * inner.dilation[0] + 1 - inner.stride[0]
        if layer not in self._states:
            if layer.pad_mode == "reflect" and x.shape[2] <= pad:
                self._required_frames = max(self._required_frames, pad + 1)
            extended = layer._pad1d(x, (pad, 0), mode=layer.pad_mode)
        else:
            if self._required_frames:
                raise TokenizerError(
                    "the first push was too short, because the first codec frames depend on later ones; push at least "
                    f"{self._required_frames} frames first"
                )
            extended = torch.cat([self._states[layer], x], 2)
        self._states[layer] = extended[..., extended.shape[2] - pad :].clone()  # a slice would keep all of it
        return inner(extended)

    def _transposed(self, inner: nn.ConvTranspose1d, x: Tensor) -> Tensor:
        complete = x.shape[2] * inner.stride[0]
        out = inner(x)
        if inner in self._states:
            overlap = self._states[inner]
            out = torch.cat([out[..., : overlap.shape[2]] + overlap, out[..., overlap.shape[2] :]], 2)
        tail = out[..., complete:]
        # Every call adds the bias to all its outputs; the tail gets its bias from the next call.
        self._states[inner] = tail if inner.bias is None else tail - inner.bias[:, None]
        return out[..., :complete]

    def _lstm(self, layer: Any, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        out, self._states[layer] = layer.lstm(steps, self._states.get(layer))
        return (out + steps).permute(1, 2, 0)
