"""Shapes of the tokens of a tokenizer, known before its weights are loaded: from its config alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_object, instantiate

from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.tokenizers.weights import load_config


@dataclass(frozen=True)
class VideoLayout:
    """Shape of a video tokenizer's latents; attributes as of `VideoTokenizer`."""

    channels: int
    temporal_stride: int
    spatial_stride: int


@dataclass(frozen=True)
class AudioLayout:
    """Shape of an audio codec's codes; attributes as of `AudioCodec`."""

    sample_rate: int
    hop: int
    codebooks: int
    vocabulary: int


def video_layout(node: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> VideoLayout | None:
    """The layout of a video tokenizer that a config describes, without loading its weights.

    Args:
        node: The config, with `_target_`.
        published: The layout of weights published under the name `published["of"]`, by attribute.

    Returns:
        The layout, or `None` where only loading can tell, as for a folder in the format of diffusers.

    Raises:
        TokenizerError: a folder holds another kind of tokenizer.
    """
    tokenizer = _without_weights(node)
    if isinstance(tokenizer, VideoTokenizer):
        return VideoLayout(tokenizer.channels, tokenizer.temporal_stride, tokenizer.spatial_stride)
    known = _of_published(node, published)
    return None if known is None else VideoLayout(**known)


def audio_layout(node: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> AudioLayout | None:
    """The layout of an audio codec that a config describes, as `video_layout`; `node["codebooks"]` counts."""
    codec = _without_weights(node)
    if isinstance(codec, AudioCodec):
        return AudioLayout(codec.sample_rate, codec.hop, codec.codebooks, codec.vocabulary)
    known = _of_published(node, published)
    return None if known is None else AudioLayout(**known, codebooks=node["codebooks"])


def _without_weights(node: Mapping[str, Any]) -> Any:
    """A tokenizer of this package's own with random weights; `None` for one whose config says too little."""
    made = get_object(node["_target_"])
    owner: Any = getattr(made, "__self__", None)  # of a class method, the class
    with torch.random.fork_rng(devices=[]):
        if inspect.isclass(made):
            return instantiate(dict(node))
        if owner is not None and made.__name__ == "load":
            return owner.from_config(load_config(node["directory"], owner.__name__))
    return None


def _of_published(node: Mapping[str, Any], published: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The attributes, if the config names what they are known of."""
    if published is None or published["of"] not in (node.get("name"), node.get("name_or_path")):
        return None
    return {name: value for name, value in published.items() if name != "of"}
