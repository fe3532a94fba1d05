"""Builds an untrained responder from a config and its tokenizers, for a new run and for a release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vidchat.conditions.base import Conditioning
from vidchat.conditions.node import read_conditions
from vidchat.dialogue import ChunkClock
from vidchat.model.chunks import CodeShape, LatentShape, TokenShapes
from vidchat.model.responder import Responder
from vidchat.registry import build
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.text import TextTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.video import VideoTokenizer
from vidchat.tokenizers.weights import TokenizerError


def clock_of(fps: int, video_vae: VideoTokenizer, audio_codec: AudioCodec) -> ChunkClock:
    """Returns the clock of a pair of tokenizers; raises `ClockError` if their rates don't divide."""
    return ChunkClock(fps, video_vae.temporal_stride, audio_codec.sample_rate, audio_codec.hop)


def build_responder(
    model: Mapping[str, Any],
    condition: Mapping[str, Any],
    fps: int,
    video_vae: VideoTokenizer,
    audio_codec: AudioCodec,
    text_tokenizer: TextTokenizer,
    trust: Iterable[str] = (),
) -> Responder:
    """Returns an untrained responder, with its sizes from the config and the shapes of its tokens from the tokenizers.

    Args:
        model: Config of the model, in names; without `depth` it has no audio.
        condition: Config of the conditions, in names.
        fps: Frames per second.
        video_vae: Video tokenizer.
        audio_codec: Audio codec.
        text_tokenizer: Text tokenizer.
        trust: Packages beside this one whose classes the config may name.

    Raises:
        ClockError: the tokenizers' rates don't divide.
        ConditionError, UnknownName, WrongArguments: see `vidchat.conditions.node` and `vidchat.registry`.
    """
    clock = clock_of(fps, video_vae, audio_codec)
    codes = CodeShape(clock.codec_frames_per_chunk, audio_codec.codebooks, audio_codec.vocabulary)
    responder: Responder = build(
        model,
        trust,
        tokens=TokenShapes(
            latent=LatentShape(video_vae.channels, video_vae.temporal_stride),
            codes=codes if model.get("depth") else None,
            vocabulary=text_tokenizer.vocabulary,
        ),
        conditions=Conditioning(
            read_conditions(condition, trust),
            hears=bool(condition["initiator"]),
            drop=condition["drop"],
        ),
    )
    return responder


def check_thinker(thinker: Thinker | None, condition: Mapping[str, Any]) -> None:
    """Raises `TokenizerError` if a thinker's features do not have the width that the condition expects."""
    features = condition.get("features") or 0
    width = features.get("width") if isinstance(features, Mapping) else features
    if thinker is not None and thinker.width != width:
        raise TokenizerError(
            f"the thinker {thinker.name} gives features of {thinker.width} values and condition.features is "
            f"{width}; set condition.features={thinker.width}, or thinker=none and condition.features=0"
        )
