"""Causal video VAEs of diffusers behind the tokenizer interface.

Those whose encoder or decoder looks ahead encode or decode whole clips, and refuse to stream; the streams of the others
are in `causal_streams.py`.
"""

from __future__ import annotations

from typing import Any, Self

import diffusers
import torch
from torch import Tensor, nn

from vidchat.registry import register
from vidchat.tokenizers.causal_streams import WAN_STRIDE, CausalEncoderStream, CausalStream, WanCache
from vidchat.tokenizers.video import VideoEncoderStream, VideoStream, VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError, not_loaded

CAUSAL = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLCosmos", "AutoencoderKLHunyuanVideo15")
"""Classes found causal, encoder and decoder, by changing later frames and latents (LTX: if its config says so)."""
LOOK_AHEAD = {
    "AutoencoderKLHunyuanVideo": "its group norms and attention run over the whole clip",
    "AutoencoderKLCogVideoX": "its group norms run over all frames of a chunk",
}
"""Classes found not to be causal, and why."""


@register("causal_vae", by="from_pretrained")
class CausalVAE(VideoTokenizer):
    """A video VAE of diffusers, whole clips in and out.

    It computes in the type of its weights, e.g. bfloat16; what it is given and gives back, and its statistics, are of
    the caller's type, usually float32.

    Args:
        vae: One of `CAUSAL` or `LOOK_AHEAD`. Of its distributions, the mode is taken.
        look_back: In a stream, latents that attention over time (Cosmos, HunyuanVideo 1.5) sees before its own. `None`
            is all of them: a stream is then exactly the whole decoding, and what it keeps grows with the answer.
    """

    def __init__(self, vae: nn.Module, look_back: int | None = None) -> None:
        kind = type(vae).__name__
        if kind not in CAUSAL and kind not in LOOK_AHEAD:
            raise TokenizerError(f"{kind} was not checked for causality; use one of {', '.join(CAUSAL)}")
        settings = _config(vae)
        stride, causal = _temporal_stride(vae), _look_ahead(vae) is None
        super().__init__(_channels(settings), stride, _spatial_stride(vae), causal)
        self.vae: Any = vae
        self.look_back = look_back
        if isinstance(vae, diffusers.AutoencoderKLHunyuanVideo15):
            _one_after_the_other(vae)
        if isinstance(vae, diffusers.AutoencoderKLWan) and stride != WAN_STRIDE:
            raise TokenizerError(
                f"AutoencoderKLWan encodes {WAN_STRIDE} frames at a time, so its temporal stride must be that, not "
                f"{stride}; set two of temperal_downsample"
            )
        self._take_statistics(settings)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        kind: str = "AutoencoderKLWan",
        subfolder: str | None = None,
        dtype: str = "float32",
        look_back: int | None = None,
    ) -> Self:
        """Takes a VAE from the Hub or a local folder; its latents' statistics come with its configuration.

        Args:
            name: A Hub name or a folder, e.g. `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.
            kind: Its class in diffusers.
            subfolder: Where in the repository it lies, usually `vae`.
            dtype: Of its weights and of its computing, e.g. `bfloat16`.
            look_back: See the class.

        Raises:
            TokenizerError: there is no such VAE, or it cannot be reached.
        """
        loader = _class(kind)
        try:
            vae = loader.from_pretrained(
                name, subfolder=subfolder, torch_dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise not_loaded(name, kind, subfolder, error) from error
        return cls(vae, look_back).eval()

    def _take_statistics(self, settings: dict[str, Any]) -> None:
        """Per channel where the VAE has it, else from its one scaling factor."""
        scale = float(settings.get("scaling_factor") or 1.0)
        mean, std = self._statistic("latents_mean", 0.0), self._statistic("latents_std", 1.0)
        if isinstance(self.vae, diffusers.AutoencoderKLCosmos) and len(mean) == len(std) and len(mean) > self.channels:
            mean, std = _over_frames(mean, std, self.channels)
        self.set_statistics(mean, std / scale)

    def _statistic(self, name: str, default: float) -> Tensor:
        """LTX-Video has it as a buffer, the others in their configuration; (C,), but of Cosmos (C * frames,)."""
        values = dict(self.vae.named_buffers(recurse=False)).get(name)
        if values is None:
            values = self.vae.config.get(name)
        if values is None:
            return torch.full((self.channels,), default)
        return torch.as_tensor(values).float().flatten()

    def config(self) -> dict[str, Any]:
        return {"kind": type(self.vae).__name__, "vae": _config(self.vae)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(_class(config["kind"]).from_config(config["vae"]))

    def encode_raw(self, frames: Tensor) -> Tensor:
        encoded = self.vae.encode(frames.to(self.vae.dtype))
        latents: Tensor = encoded.latent_dist.mode()
        return latents.to(frames.dtype)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """See `VideoTokenizer`. Wan clamps what `decode` returns, so its decoder is called by the stream's loop."""
        raw = latents.to(self.vae.dtype)
        if isinstance(self.vae, diffusers.AutoencoderKLWan):
            frames = WanCache(self.vae).decode(raw)
        else:
            frames = self.vae.decode(raw, **self.decoding(raw)).sample
        return frames.to(latents.dtype)

    def decoding(self, raw: Tensor) -> dict[str, Tensor]:
        """What a decoder is given beside latents: LTX-Video from 0.9.1 on, the level of noise in them, which is 0."""
        return {"temb": raw.new_zeros(len(raw))} if _config(self.vae).get("timestep_conditioning") else {}

    def stream(self) -> VideoStream:
        reason = _look_ahead(self.vae)
        if reason is not None:
            raise TokenizerError(
                f"{type(self.vae).__name__} cannot stream: {reason}, so the frames of a chunk need later latents; "
                "decode whole clips with it, or take AutoencoderKLWan"
            )
        return CausalStream(self)

    def encoder_stream(self) -> VideoEncoderStream:
        reason = LOOK_AHEAD.get(type(self.vae).__name__)
        if not _config(self.vae).get("encoder_causal", True):
            reason = "its configuration has encoder_causal=false"
        if reason is not None:
            raise TokenizerError(
                f"{type(self.vae).__name__} cannot encode a stream: {reason}, so the latents of a chunk need later "
                "frames; encode whole clips with it, or take AutoencoderKLWan"
            )
        return CausalEncoderStream(self)


def _one_after_the_other(vae: Any) -> None:
    """For a VAE whose attention mask fits one clip only: the clips of a batch go through it one by one."""
    vae.use_slicing = True


def _class(kind: str) -> Any:
    if kind not in CAUSAL and kind not in LOOK_AHEAD:
        raise TokenizerError(f"{kind} is not a video VAE that was checked; use one of {', '.join(CAUSAL)}")
    return getattr(diffusers, kind)


def _config(vae: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}


def _over_frames(mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Statistics for each of some frames (C * frames,) -> for all of them together (C,)."""
    means, squares = mean.view(channels, -1), (std.square() + mean.square()).view(channels, -1)
    return means.mean(1), (squares.mean(1) - means.mean(1).square()).sqrt()


def _look_ahead(vae: Any) -> str | None:
    """Why this VAE's decoder needs later latents, or `None`."""
    if type(vae).__name__ == "AutoencoderKLLTXVideo" and not vae.config.decoder_causal:
        return "its configuration has decoder_causal=false, as all published weights have"
    return LOOK_AHEAD.get(type(vae).__name__)


def _channels(settings: dict[str, Any]) -> int:
    return int(settings["z_dim"] if "z_dim" in settings else settings["latent_channels"])


def _temporal_stride(vae: Any) -> int:
    settings = _config(vae)
    if "temperal_downsample" in settings:  # Wan; the spelling is theirs
        return int(2 ** sum(settings["temperal_downsample"]))
    return int(settings.get("temporal_compression_ratio") or vae.temporal_compression_ratio)


def _spatial_stride(vae: Any) -> int:
    """Pixels per latent position; Wan's own attribute stays 8 whatever its shape, so it is counted."""
    settings = _config(vae)
    if "dim_mult" in settings:
        return int((settings["patch_size"] or 1) * 2 ** (len(settings["dim_mult"]) - 1))
    if settings.get("spatial_compression_ratio"):
        return int(settings["spatial_compression_ratio"])
    own = getattr(vae, "spatial_compression_ratio", None)
    return int(own or 2 ** (len(settings["block_out_channels"]) - 1))
