"""Token shapes of a tokenizer, derived from its config before its weights are loaded."""

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
    """Shape of a video tokenizer's latents; the attributes are those of `VideoTokenizer`."""

    channels: int
    temporal_stride: int
    spatial_stride: int


@dataclass(frozen=True)
class AudioLayout:
    """Shape of an audio codec's codes; the attributes are those of `AudioCodec`."""

    sample_rate: int
    hop: int
    codebooks: int
    vocabulary: int


def video_layout(node: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> VideoLayout | None:
    """Returns the layout of the video tokenizer that a config describes, without loading its weights.

    Args:
        node: The config, with `_target_`.
        published: Attributes of the layout of the weights published under the name `published["of"]`.

    Returns:
        The layout, or `None` if only loading can tell, e.g. for a folder in the format of diffusers.

    Raises:
        TokenizerError: a folder holds another kind of tokenizer.
    """
    tokenizer = _build_untrained(node)
    if isinstance(tokenizer, VideoTokenizer):
        return VideoLayout(tokenizer.channels, tokenizer.temporal_stride, tokenizer.spatial_stride)
    known = _published_layout(node, published)
    return None if known is None else VideoLayout(**known)


def audio_layout(node: Mapping[str, Any], published: Mapping[str, Any] | None = None) -> AudioLayout | None:
    """Returns the layout of the audio codec that a config describes; see `video_layout`.

    `node["codebooks"]` is the number of codebooks of a published codec.
    """
    codec = _build_untrained(node)
    if isinstance(codec, AudioCodec):
        return AudioLayout(codec.sample_rate, codec.hop, codec.codebooks, codec.vocabulary)
    known = _published_layout(node, published)
    return None if known is None else AudioLayout(**known, codebooks=node["codebooks"])


def _build_untrained(node: Mapping[str, Any]) -> Any:
    """Builds the tokenizer with random weights; returns `None` if its config does not describe its shape."""
    builder = get_object(node["_target_"])
    owner: Any = getattr(builder, "__self__", None)  # the class of a class method
    with torch.random.fork_rng(devices=[]):
        if inspect.isclass(builder):
            return instantiate(dict(node))
        if owner is not None and builder.__name__ == "load":
            return owner.from_config(load_config(node["directory"], owner.__name__))
    return None


def _published_layout(node: Mapping[str, Any], published: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the attributes of the published weights if the config names these weights."""
    if published is None or published["of"] not in (node.get("name"), node.get("name_or_path")):
        return None
    return {name: value for name, value in published.items() if name != "of"}
