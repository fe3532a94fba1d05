"""A responder on the meta device, without memory for its weights, built from a config and the shapes of its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from vidchat.build import build_responder
from vidchat.model.responder import Responder
from vidchat.registry import packages_in, to_names
from vidchat.tokenizers.text import ByteTokenizer


class FitError(ValueError):
    """A model whose patches do not divide its latents, or whose training step is too large for its device."""


class Video(Protocol):
    """The shape of latents, from a video tokenizer or its `VideoLayout`."""

    @property
    def channels(self) -> int: ...
    @property
    def temporal_stride(self) -> int: ...
    @property
    def spatial_stride(self) -> int: ...


class Audio(Protocol):
    """The shape of codes, from an audio codec or its `AudioLayout`."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def hop(self) -> int: ...
    @property
    def codebooks(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...


def check_size(size: Sequence[int], video: Video) -> None:
    """Raises `FitError` unless both sides are multiples of the video tokenizer's spatial stride."""
    stride = video.spatial_stride
    if any(side % stride for side in size):
        nearest = [max(stride, round(side / stride) * stride) for side in size]
        raise FitError(
            f"data.size={list(size)} must be multiples of {stride} on both sides for this video tokenizer; "
            f"set data.size=[{nearest[0]},{nearest[1]}] or another video_vae"
        )


def latent_grid(size: Sequence[int], video: Video, patch: int, ratio: int) -> tuple[int, int]:
    """Returns the rows and columns of the latents of frames of a size (height, width).

    Raises:
        FitError: The latents do not divide into the backbone's patches.
    """
    rows, columns = (side // video.spatial_stride for side in size)
    side = patch * ratio
    if rows % side or columns % side:
        raise FitError(
            f"data.size={list(size)} gives latents of {rows} x {columns}, which do not divide into the backbone's "
            f"patches of {side} (model.patch={patch} times model.ratio={ratio}); set data.size to multiples of "
            f"{side * video.spatial_stride}, or model.patch and model.ratio to numbers whose product divides both"
        )
    return rows, columns


def build_without_memory(config: Mapping[str, Any], video: Any, audio: Any) -> Responder:
    """Builds a config's responder on the meta device; text is embedded as bytes, whatever the text tokenizer."""
    model, condition = to_names(config["model"]), to_names(config["condition"])
    tokenizers, trust = (video, audio, ByteTokenizer()), packages_in([model, condition])
    with torch.device("meta"):
        return build_responder(model, condition, config["data"]["fps"], *tokenizers, trust=trust)
