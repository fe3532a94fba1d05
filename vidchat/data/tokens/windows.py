"""From clips to tokens, a window at a time: clips are decoded, then encoded in batches of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from vidchat.data.media.read import Media, MediaError
from vidchat.data.tokens.encoder import ClipEncoder, Segment, Track
from vidchat.data.tokens.shards import ShardError
from vidchat.data.tokens.token_cache import TokenCache

WINDOW = 256 << 20  # bytes of frames that are decoded before they are encoded
BATCH = 8  # spans of one shape that are encoded together


@dataclass
class Decoded:
    """The spans of a segment, or why there are none."""

    segment: Segment
    stamp: tuple[int, int] | None
    spans: list[Media] = field(default_factory=list)
    why: str | None = None


def windows(cache: TokenCache, segments: Sequence[Segment]) -> Iterator[list[Decoded]]:
    """Yields decoded segments, a few at a time."""
    window: list[Decoded] = []
    held = 0
    for segment in segments:
        window.append(_decode(cache, segment))
        held += sum(span.frames.nbytes for span in window[-1].spans)
        if held > WINDOW:
            yield window
            window, held = [], 0
    if window:
        yield window


def _decode(cache: TokenCache, segment: Segment) -> Decoded:
    """Decodes a segment, as many chunks as the cache may hold, from its file or from a media shard.

    Of a clip's first or last chunks it is one more than a turn may have: a clip without it ends there.
    """
    stamp = cache.stamp(segment.clip)
    longest = cache.longest + (segment.part != "spans")
    try:
        with cache.media.extracted(cache.name(segment.clip)) as path:
            clip = segment.clip if path is None or segment.clip.path.is_file() else replace(segment.clip, path=path)
            return Decoded(segment, stamp, cache.encoder.read(replace(segment, clip=clip, max_chunks=longest)))
    except (MediaError, ShardError) as error:
        return Decoded(segment, stamp, why=str(error))


def encode(
    encoder: ClipEncoder, window: list[Decoded], tracks: Sequence[Track], device: str
) -> list[list[dict[Track, Tensor]]]:
    """Encodes the spans of a window in batches of one shape; returns the tokens of each segment's spans, in order."""
    by_shape: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, decoded in enumerate(window):
        for k, span in enumerate(decoded.spans):
            by_shape.setdefault(tuple(span.frames.shape), []).append((number, k))
    encoded: list[list[dict[Track, Tensor]]] = [[{} for _ in decoded.spans] for decoded in window]
    for alike in by_shape.values():
        for first in range(0, len(alike), BATCH):
            batch = alike[first : first + BATCH]
            spans = [window[number].spans[k] for number, k in batch]
            for (number, k), tokens in zip(batch, encoder.encode_tracks(spans, tracks, device), strict=True):
                encoded[number][k] = tokens
    return encoded
