"""Causal video VAEs of diffusers as video tokenizers.

VAEs whose encoder or decoder looks ahead work on whole clips and refuse to stream. The streams of the others are in
`causal_streams.py`.
"""

from __future__ import annotations

from typing import Any, Self

import diffusers
import torch
from torch import Tensor, nn

from vidchat.registry import register
from vidchat.tokenizers.causal_streams import WAN_STRIDE, CausalEncoderStream, CausalStream, WanDecoder
from vidchat.tokenizers.video import VideoEncoderStream, VideoStream, VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError, load_error

CAUSAL = ("AutoencoderKLWan", "AutoencoderKLLTXVideo", "AutoencoderKLCosmos", "AutoencoderKLHunyuanVideo15")
"""Classes whose encoder and decoder are causal (LTX: if its config says so), as tests by perturbation show."""
LOOK_AHEAD = {
    "AutoencoderKLHunyuanVideo": "its group norms and attention run over the whole clip",
    "AutoencoderKLCogVideoX": "its group norms run over all frames of a chunk",
}
"""Classes that are not causal, with the reason."""


@register("causal_vae", by="from_pretrained")
class CausalVAE(VideoTokenizer):
    """A video VAE of diffusers.

    It computes in the type of its weights, e.g. bfloat16; inputs, outputs and statistics have the caller's type,
    usually float32.

    Args:
        vae: A VAE of a class in `CAUSAL` or `LOOK_AHEAD`. A latent is the mode of its distribution.
        look_back: Number of earlier latents that attention over time (Cosmos, HunyuanVideo 1.5) sees in a stream. With
            `None` it sees all of them: the stream then equals decoding the whole clip, and its memory grows.
    """

    def __init__(self, vae: nn.Module, look_back: int | None = None) -> None:
        kind = type(vae).__name__
        if kind not in CAUSAL and kind not in LOOK_AHEAD:
            raise TokenizerError(f"the causality of {kind} was not checked; use one of {', '.join(CAUSAL)}")
        settings = _config(vae)
        stride, causal = _temporal_stride(vae), _look_ahead_reason(vae) is None
        super().__init__(_channels(settings), stride, _spatial_stride(vae), causal)
        self.vae: Any = vae
        self.look_back = look_back
        if isinstance(vae, diffusers.AutoencoderKLHunyuanVideo15):
            _slice_batches(vae)
        if isinstance(vae, diffusers.AutoencoderKLWan) and stride != WAN_STRIDE:
            raise TokenizerError(
                f"AutoencoderKLWan encodes {WAN_STRIDE} frames at a time, so its temporal stride must be {WAN_STRIDE}, "
                f"not {stride}; set two entries of temperal_downsample to true"
            )
        self._set_published_statistics(settings)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        kind: str = "AutoencoderKLWan",
        subfolder: str | None = None,
        dtype: str = "float32",
        look_back: int | None = None,
    ) -> Self:
        """Loads a VAE from the Hub or a local folder, with the latent statistics of its configuration.

        Args:
            name: Hub name or folder, e.g. `Wan-AI/Wan2.1-T2V-1.3B-Diffusers`.
            kind: Name of its class in diffusers.
            subfolder: Subfolder of the repository that holds the VAE, usually `vae`.
            dtype: Type of the weights and of the computation, e.g. `bfloat16`.
            look_back: See the class.

        Raises:
            TokenizerError: there is no such VAE, or the Hub cannot be reached.
        """
        loader = _vae_class(kind)
        try:
            vae = loader.from_pretrained(
                name, subfolder=subfolder, torch_dtype=getattr(torch, dtype), use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise load_error(name, kind, subfolder, error) from error
        return cls(vae, look_back).eval()

    def _set_published_statistics(self, settings: dict[str, Any]) -> None:
        """Sets the statistics per channel if the VAE has them, else from its scaling factor."""
        scale = float(settings.get("scaling_factor") or 1.0)
        mean, std = self._read_statistic("latents_mean", 0.0), self._read_statistic("latents_std", 1.0)
        if isinstance(self.vae, diffusers.AutoencoderKLCosmos) and len(mean) == len(std) and len(mean) > self.channels:
            mean, std = _pool_over_frames(mean, std, self.channels)
        self.set_statistics(mean, std / scale)

    def _read_statistic(self, name: str, default: float) -> Tensor:
        """Returns a statistic (C,), for Cosmos (C * frames,), from a buffer (LTX-Video) or the configuration."""
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
        return cls(_vae_class(config["kind"]).from_config(config["vae"]))

    def encode_raw(self, frames: Tensor) -> Tensor:
        encoded = self.vae.encode(frames.to(self.vae.dtype))
        latents: Tensor = encoded.latent_dist.mode()
        return latents.to(frames.dtype)

    def decode_raw(self, latents: Tensor) -> Tensor:
        """See `VideoTokenizer`. `AutoencoderKLWan.decode` clamps its output, so its decoder is run as in a stream."""
        raw = latents.to(self.vae.dtype)
        if isinstance(self.vae, diffusers.AutoencoderKLWan):
            frames = WanDecoder(self.vae).decode(raw)
        else:
            frames = self.vae.decode(raw, **self.decoder_arguments(raw)).sample
        return frames.to(latents.dtype)

    def decoder_arguments(self, raw: Tensor) -> dict[str, Tensor]:
        """Returns the decoder's further arguments for raw latents (B, C, n, h, w).

        LTX-Video from 0.9.1 on takes the noise level of the latents (B,), here 0.
        """
        return {"temb": raw.new_zeros(len(raw))} if _config(self.vae).get("timestep_conditioning") else {}

    def stream(self) -> VideoStream:
        reason = _look_ahead_reason(self.vae)
        if reason is not None:
            raise TokenizerError(
                f"{type(self.vae).__name__} cannot stream: {reason}, so the frames of a chunk need later latents; "
                "decode whole clips with it, or use AutoencoderKLWan"
            )
        return CausalStream(self)

    def encoder_stream(self) -> VideoEncoderStream:
        reason = LOOK_AHEAD.get(type(self.vae).__name__)
        if not _config(self.vae).get("encoder_causal", True):
            reason = "its configuration has encoder_causal=false"
        if reason is not None:
            raise TokenizerError(
                f"{type(self.vae).__name__} cannot encode a stream: {reason}, so the latents of a chunk need later "
                "frames; encode whole clips with it, or use AutoencoderKLWan"
            )
        return CausalEncoderStream(self)


def _slice_batches(vae: Any) -> None:
    """Makes a VAE whose attention mask fits one clip only process the clips of a batch one by one."""
    vae.use_slicing = True


def _vae_class(kind: str) -> Any:
    if kind not in CAUSAL and kind not in LOOK_AHEAD:
        raise TokenizerError(f"{kind} is not a known video VAE; use one of {', '.join(CAUSAL)}")
    return getattr(diffusers, kind)


def _config(vae: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(vae.config).items() if not name.startswith("_")}


def _pool_over_frames(mean: Tensor, std: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Pools statistics of single frames (C * frames,) into those of all frames together (C,)."""
    means, squares = mean.view(channels, -1), (std.square() + mean.square()).view(channels, -1)
    return means.mean(1), (squares.mean(1) - means.mean(1).square()).sqrt()


def _look_ahead_reason(vae: Any) -> str | None:
    """Returns the reason why the VAE's decoder needs later latents, or `None` if it is causal."""
    if type(vae).__name__ == "AutoencoderKLLTXVideo" and not vae.config.decoder_causal:
        return "its configuration has decoder_causal=false, as all published weights have"
    return LOOK_AHEAD.get(type(vae).__name__)


def _channels(settings: dict[str, Any]) -> int:
    return int(settings["z_dim"] if "z_dim" in settings else settings["latent_channels"])


def _temporal_stride(vae: Any) -> int:
    settings = _config(vae)
    if "temperal_downsample" in settings:  # Wan; sic
        return int(2 ** sum(settings["temperal_downsample"]))
    return int(settings.get("temporal_compression_ratio") or vae.temporal_compression_ratio)


def _spatial_stride(vae: Any) -> int:
    """Returns the pixels per latent position. Wan's own attribute is 8 for every shape, so its levels are counted."""
    settings = _config(vae)
    if "dim_mult" in settings:
        return int((settings["patch_size"] or 1) * 2 ** (len(settings["dim_mult"]) - 1))
    if settings.get("spatial_compression_ratio"):
        return int(settings["spatial_compression_ratio"])
    own = getattr(vae, "spatial_compression_ratio", None)
    return int(own or 2 ** (len(settings["block_out_channels"]) - 1))
