"""The provenance of tokens: everything that decides them, as plain values.

The name of the folder that holds a track's tokens ends in a fingerprint of their provenance. Its `made_with.json` holds
the provenance itself, so that a cache of other tokenizers or settings is refused by the names of the keys that differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidchat.data.folder import FolderError
from vidchat.data.tokens.encoder import VERSION, ClipEncoder, Track
from vidchat.data.tokens.shards import dumps
from vidchat.runtime.nested import differing_leaves

MADE_WITH = "made_with.json"


class CacheError(FolderError):
    """Tokens that do not belong to the tokenizers at hand, or that are not there yet."""


def provenance_of(encoder: ClipEncoder, longest: int, dtype: str) -> dict[Track, dict[str, Any]]:
    """Returns everything that decides the tokens, by track, as plain values."""
    common = {"version": VERSION, "fps": encoder.fps, "longest": longest}
    frames = {"size": list(encoder.size), "turn": encoder.allow_portrait, "dtype": dtype}
    clock = encoder.clock
    provenance: dict[Track, dict[str, Any]] = {"latents": common | frames | {"tokenizer": describe(encoder.video_vae)}}
    if encoder.audio_codec is not None:
        provenance["codes"] = common | {
            "tokenizer": describe(encoder.audio_codec),
            "sample_rate": clock.sample_rate,
            "frames_per_chunk": clock.codec_frames_per_chunk,
            "temporal_stride": clock.temporal_stride,
        }
    if encoder.thinker is not None:
        thinker = {"tokenizer": describe(encoder.thinker), "sample_rate": clock.sample_rate}
        provenance["features"] = common | frames | thinker
    return provenance


def describe(tokenizer: Any) -> dict[str, Any]:
    """Returns a tokenizer's class, fingerprint and, if it has one, configuration, as JSON holds them."""
    description: dict[str, Any] = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
    if hasattr(tokenizer, "config"):
        description["config"] = tokenizer.config()
    plain: dict[str, Any] = json.loads(json.dumps(description, default=str))
    return plain


def identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must agree: all but a tokenizer's configuration, which its fingerprint covers."""
    tokenizer = {key: value for key, value in provenance["tokenizer"].items() if key != "config"}
    return {**provenance, "tokenizer": tokenizer}


def folder_name(track: str, provenance: Mapping[str, Any]) -> str:
    """Returns the name of the folder of a track's tokens of this provenance."""
    return f"{track}-{hashlib.sha256(dumps(identity(provenance)).encode()).hexdigest()[:16]}"


def read_provenance(path: Path, track: str) -> dict[str, Any]:
    """Returns the provenance that a folder's `made_with.json` holds.

    Raises:
        CacheError: It is not that of the folder's name.
    """
    try:
        made = json.loads(path.read_text())
    except (ValueError, RecursionError):
        made = None
    complete = isinstance(made, dict) and "longest" in made and isinstance(made.get("tokenizer"), dict)
    if not complete or folder_name(track, made) != path.parent.name:
        raise CacheError(f"{path}: was changed, so nobody knows what made these tokens; delete {path.parent}")
    return dict(made)


def differences(ours: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Yields the folder of each other cache and the keys that differ from ours, the nearest cache first."""
    differing: list[tuple[int, Path, str]] = []
    for folder, made in others.items():
        keys = differing_leaves(ours, made)
        values = ", ".join(f"{key}={theirs} (here {here})" for key, here, theirs in keys)
        differing.append((len(keys), folder, values))
    for _, folder, values in sorted(differing):
        yield folder, values
