"""From a config and the tokenizers it names to an untrained responder: what a new run and a release both start from."""

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
    """The clock of a pair of tokenizers; raises `ClockError` if their rates don't divide."""
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
    """An untrained responder: its sizes from the config, its shapes from the tokenizers it will speak to.

    Args:
        model: Config of the model, of names; without `depth` it has no audio.
        condition: Config of the conditions, of names.
        fps: Frames per second.
        video_vae: Its video tokenizer.
        audio_codec: Its audio codec.
        text_tokenizer: Its text tokenizer.
        trust: Packages beside this one whose parts it may have.

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
            hears=bool(condition["initiator"] or condition["earlier_turns"]),
            drop=condition["drop"],
        ),
    )
    return responder


def check_thinker(thinker: Thinker | None, condition: Mapping[str, Any]) -> None:
    """Whether a thinker gives what a condition takes; raises `TokenizerError`."""
    taken = condition.get("features") or 0
    width = taken.get("width") if isinstance(taken, Mapping) else taken
    if thinker is not None and thinker.width != width:
        raise TokenizerError(
            f"the thinker {thinker.name} gives features of {thinker.width} values and condition.features is "
            f"{width}; set condition.features={thinker.width}, or thinker=none and condition.features=0"
        )
