"""EnCodec and Mimi, with transformers' models and published weights, encoding and decoding as a stream.

EnCodec: Défossez et al. 2022, arXiv 2210.13438 (24 kHz: 75 codec frames/s, 12 to a chunk of 160 ms, up to 32 codebooks
of 1024). Mimi: Défossez et al. 2024, arXiv 2410.00037, section 3.3 (12.5 codec frames/s, 2 to a chunk, up to 32
codebooks of 2048). Both are causal, and a stream here carries what each layer must remember (a convolution's last
inputs, a transposed convolution's unfinished outputs, the LSTM's state, the attention's keys and values), which
transformers does not do for both. So a push costs what its own frames cost, however long the answer already is.
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
from vidchat.tokenizers.weights import TokenizerError, not_loaded


class PretrainedCodec(AudioCodec):
    """What EnCodec and Mimi have in common: a transformers model, of which the first K codebooks are used.

    It computes in the type of its weights, e.g. bfloat16; audio comes out as float32.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    model_class: ClassVar[Any]

    def __init__(self, model: Any, codebooks: int) -> None:
        """
        Args:
            model: The transformers model, weights included.
            codebooks: K, how many of its codebooks to use. Fewer is a lower bit rate.
        """
        super().__init__()
        most = model.config.num_quantizers
        if not 1 <= codebooks <= most:
            raise TokenizerError(f"{type(model).__name__} has {most} codebooks, so codebooks={codebooks} is impossible")
        self._require_causal(model.config)
        self.model = model
        self.sample_rate = model.config.sampling_rate
        self.hop = round(self.sample_rate / model.config.frame_rate)
        self.codebooks, self.vocabulary = codebooks, model.config.codebook_size

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, codebooks: int, dtype: str = "float32") -> Self:
        """Published weights by their name on the Hub, or from a folder in transformers' format; in evaluation mode.

        Args:
            name_or_path: The name or the folder.
            codebooks: K, how many of its codebooks to use.
            dtype: Of its weights and of its computing.

        Raises:
            TokenizerError: there is no such model, or it cannot be reached.
        """
        try:
            model = cls.model_class.from_pretrained(name_or_path, dtype=getattr(torch, dtype), use_safetensors=True)
        except (OSError, ValueError) as error:
            raise not_loaded(str(name_or_path), cls.model_class.__name__, None, error) from error
        return cls(model, codebooks).eval()

    def config(self) -> dict[str, Any]:
        model = json.loads(self.model.config.to_json_string(use_diff=True))
        # The version of the library that saved it says nothing about the tokens.
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
        """The transformers model's own decoding of the whole: codes (B, n, K) -> waveform (B, n*hop)."""

    @abstractmethod
    def _push(self, codes: Tensor, memory: _Memory) -> Tensor:
        """The same for the next frames."""

    @abstractmethod
    def _encode(self, waveform: Tensor) -> Tensor:
        """The transformers model's own encoding of the whole: waveform (B, 1, n*hop) -> codes (B, n, K)."""

    @abstractmethod
    def _push_waveform(self, waveform: Tensor, memory: _Memory) -> Tensor:
        """The same for the next samples."""

    @staticmethod
    def _require_causal(config: Any) -> None:
        if not config.use_causal_conv or config.trim_right_ratio != 1.0 or config.audio_channels != 1:
            raise TokenizerError(
                "only causal codecs of one channel can stream: this one has "
                f"use_causal_conv={config.use_causal_conv}, trim_right_ratio={config.trim_right_ratio}, "
                f"audio_channels={config.audio_channels}; use encodec_24khz or mimi"
            )


@register("encodec", by="from_pretrained")
class EncodecCodec(PretrainedCodec):
    """EnCodec 24 kHz.

    Its convolutions pad by reflection, so the first frames of a waveform depend on those after them, 7 in all: a
    decoder's first push must hold at least 7 frames (a chunk holds 12), or be the only one; an encoder waits for them.
    """

    config_class = EncodecConfig
    model_class = EncodecModel

    def __init__(self, model: Any, codebooks: int) -> None:
        super().__init__(model, codebooks)
        rate = self.hop  # inputs of a layer in a codec frame
        for layer in model.encoder.modules():
            if isinstance(getattr(layer, "conv", None), nn.Conv1d):
                if layer.pad_mode == "reflect":  # its first inputs are all those that are mirrored, and the mirror
                    self.first_codec_frames = max(self.first_codec_frames, -(-(int(layer.padding_total) + 1) // rate))
                rate //= layer.conv.stride[0]

    def _encode(self, waveform: Tensor) -> Tensor:
        return self._quantize(self.model.encoder(waveform))

    def _push_waveform(self, waveform: Tensor, memory: _Memory) -> Tensor:
        return self._quantize(memory.run(self.model.encoder.layers, waveform))

    def _quantize(self, residual: Tensor) -> Tensor:
        """Vectors (B, D, n) -> codes (B, n, K)."""
        codes: list[Tensor] = []
        for level in self.model.quantizer.layers[: self.codebooks]:
            codes.append(level.encode(residual))
            residual = residual - level.decode(codes[-1])
        return torch.stack(codes, -1)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decoder(self.model.quantizer.decode(codes.permute(2, 0, 1)))[:, 0]

    def _push(self, codes: Tensor, memory: _Memory) -> Tensor:
        return memory.run(self.model.decoder.layers, self.model.quantizer.decode(codes.permute(2, 0, 1)))[:, 0]


@register("mimi", by="from_pretrained")
class MimiCodec(PretrainedCodec):
    """Mimi. The first codebook is its semantic one, the others are acoustic."""

    config_class = MimiConfig
    model_class = MimiModel

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Moves and casts it. transformers keeps each codebook outside the buffers too, where it would stay behind."""
        super()._apply(fn, recurse)
        for module in self.modules():
            if "_embed" in vars(module):
                vars(module)["_embed"] = None
        return self

    def _encode(self, waveform: Tensor) -> Tensor:
        return self.model.encode(waveform, num_quantizers=self.codebooks).audio_codes.transpose(1, 2)

    def _push_waveform(self, waveform: Tensor, memory: _Memory) -> Tensor:
        encoder = self.model.encoder
        x = memory.run(encoder.encoder_seanet.layers, waveform)
        x = memory.attend(encoder.encoder_transformer, x)
        return self.model.quantizer.encode(memory.run([encoder.downsample], x), self.codebooks).permute(1, 2, 0)

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes.transpose(1, 2)).audio_values[:, 0]

    def _push(self, codes: Tensor, memory: _Memory) -> Tensor:
        decoder = self.model.decoder
        x = self.model.quantizer.decode(codes.transpose(1, 2))
        if decoder.upsample is not None:
            x = memory.run([decoder.upsample], x)
        return memory.run(decoder.decoder_seanet.layers, memory.attend(decoder.decoder_transformer, x))[:, 0]


class PretrainedStream(AudioStream):
    """One answer being decoded."""

    def __init__(self, codec: PretrainedCodec) -> None:
        self._codec, self._memory = codec, _Memory()

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        self._codec.check_codes(codes)
        return self._codec._push(codes, self._memory).float()


class PretrainedEncoderStream(AudioEncoderStream):
    """One waveform being encoded."""

    _codec: PretrainedCodec

    def __init__(self, codec: PretrainedCodec) -> None:
        super().__init__(codec)
        self._memory = _Memory()

    def _encode(self, waveform: Tensor) -> Tensor:
        return self._codec._push_waveform(waveform[:, None].to(self._codec.model.dtype), self._memory)


class _Memory:
    """What the layers of one stream remember from push to push.

    Layers are known by what they hold: EnCodec's and Mimi's classes differ in name only.
    """

    def __init__(self) -> None:
        self._kept: dict[nn.Module, Any] = {}
        self._too_short = 0  # frames that the first push should have had, if it had fewer
        self.attention: DynamicCache | None = None

    def run(self, layers: Any, x: Tensor) -> Tensor:
        """x (B, C, n) through layers; each continues where it stopped."""
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def attend(self, transformer: Any, x: Tensor) -> Tensor:
        """x (B, C, n) through a transformer, whose keys and values are kept as far as its window reaches."""
        if self.attention is None:
            self.attention = DynamicCache(config=transformer.config)
        hidden = transformer(x.transpose(1, 2), past_key_values=self.attention, use_cache=True)
        out: Tensor = hidden.last_hidden_state
        return out.transpose(1, 2)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        if hasattr(layer, "block"):
            skip: Any = layer.shortcut
            return self.run(layer.block, x) + self._layer(skip, x)
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
        if layer not in self._kept:
            if layer.pad_mode == "reflect" and x.shape[2] <= pad:
                self._too_short = max(self._too_short, pad + 1)
            seen = layer._pad1d(x, (pad, 0), mode=layer.pad_mode)
        else:
            if self._too_short:
                raise TokenizerError(
                    f"its first frames depend on those after them: push at least {self._too_short} frames first"
                )
            seen = torch.cat([self._kept[layer], x], 2)
        self._kept[layer] = seen[..., seen.shape[2] - pad :].clone()  # of all that it has seen, nothing else is kept
        return inner(seen)

    def _transposed(self, inner: nn.ConvTranspose1d, x: Tensor) -> Tensor:
        done = x.shape[2] * inner.stride[0]
        out = inner(x)
        if inner in self._kept:
            left = self._kept[inner]
            out = torch.cat([out[..., : left.shape[2]] + left, out[..., left.shape[2] :]], 2)
        tail = out[..., done:]
        # Every call adds the bias to all it returns; what is left over gets its bias from the next call.
        self._kept[inner] = tail if inner.bias is None else tail - inner.bias[:, None]
        return out[..., :done]

    def _lstm(self, layer: Any, x: Tensor) -> Tensor:
        steps = x.permute(2, 0, 1)
        out, self._kept[layer] = layer.lstm(steps, self._kept.get(layer))
        return (out + steps).permute(1, 2, 0)
