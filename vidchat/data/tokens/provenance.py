"""What decides the tokens of a cache: put together, named by a fingerprint, written down, compared in words.

A track's ingredients are everything that decides its tokens, in the clear. Their fingerprint is in the name of the
folder that holds the tokens; its `made_with.json` holds the ingredients themselves, so that a cache that was made with
something else can be refused by the names of the keys that differ.
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
    """Everything that decides the tokens, by track, in the clear."""
    common = {"version": VERSION, "fps": encoder.fps, "longest": longest}
    frames = {"size": list(encoder.size), "turn": encoder.allow_portrait, "dtype": dtype}
    clock = encoder.clock
    made: dict[Track, dict[str, Any]] = {"latents": common | frames | {"tokenizer": describe(encoder.video_vae)}}
    if encoder.audio_codec is not None:
        made["codes"] = common | {
            "tokenizer": describe(encoder.audio_codec),
            "sample_rate": clock.sample_rate,
            "frames_per_chunk": clock.codec_frames_per_chunk,
            "temporal_stride": clock.temporal_stride,
        }
    if encoder.thinker is not None:
        thinker = {"tokenizer": describe(encoder.thinker), "sample_rate": clock.sample_rate}
        made["features"] = common | frames | thinker
    return made


def describe(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer's class, fingerprint and, if it has one, configuration, as JSON holds them."""
    told: dict[str, Any] = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
    if hasattr(tokenizer, "config"):
        told["config"] = tokenizer.config()
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return plain


def identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree. A tokenizer's fingerprint covers its configuration, which is kept to name differences by."""
    tokenizer = {key: value for key, value in provenance["tokenizer"].items() if key != "config"}
    return {**provenance, "tokenizer": tokenizer}


def folder_name(track: str, provenance: Mapping[str, Any]) -> str:
    """The name of the folder of a track's tokens that were made with these."""
    return f"{track}-{hashlib.sha256(dumps(identity(provenance)).encode()).hexdigest()[:16]}"


def read_provenance(path: Path, track: str) -> dict[str, Any]:
    """The ingredients that a folder's record names.

    Raises:
        CacheError: They are not those of the folder's name.
    """
    try:
        made = json.loads(path.read_text())
    except (ValueError, RecursionError):
        made = None
    whole = isinstance(made, dict) and "longest" in made and isinstance(made.get("tokenizer"), dict)
    if not whole or folder_name(track, made) != path.parent.name:
        raise CacheError(f"{path}: was changed, so nobody knows what made these tokens; delete {path.parent}")
    return dict(made)


def differences(ours: Mapping[str, Any], others: Mapping[Path, Mapping[str, Any]]) -> Iterator[tuple[Path, str]]:
    """Of each other cache, by its folder, the keys that differ from ours, the nearest cache first."""
    found: list[tuple[int, Path, str]] = []
    for folder, made in others.items():
        keys = differing_leaves(ours, made)
        told = ", ".join(f"{key}={theirs} (here {here})" for key, here, theirs in keys)
        found.append((len(keys), folder, told))
    for _, folder, told in sorted(found):
        yield folder, told
