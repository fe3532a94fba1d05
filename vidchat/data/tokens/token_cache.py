"""Token caches: every segment of a data set is encoded once, and read from then on.

    <root>/tokens/latents-<fingerprint>/made_with.json  shard-*.tar  shard-*.json  index.json
    <root>/tokens/codes-<fingerprint>/...

Latents, codes and features are separate tracks, so that a stage without audio and one with it share latents, and a
thinker's features can be added later. A fingerprint covers everything that decides the tokens; `made_with.json` holds
the same in words. A folder without its clips can be read too: tokens are all that training needs.
`vidchat.data.tokens.encode` fills a cache; `tokens.track` reads one track, `tokens.provenance` names it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vidchat.data.tokens.encoder import ClipEncoder, Part, Segment, Tokens, Track
from vidchat.data.tokens.media_shards import MediaShards
from vidchat.data.tokens.provenance import MADE_WITH, CacheError, differences, provenance_of
from vidchat.data.tokens.shards import dumps
from vidchat.data.tokens.track import TrackCache
from vidchat.data.tokens.track_index import Stamp, key_of
from vidchat.dialogue import Clip, Dialogue, Turn

log = logging.getLogger(__name__)
TOKENS = "tokens"  # the folder of a data set's tokens
TOGETHER_S = 0.1  # turns that start within this time start together


class SegmentState(NamedTuple):
    """The state of a segment: its key, the tracks that it lacks, and why it could not be encoded, if so."""

    key: str
    missing: tuple[Track, ...]
    bad: str | None


class TokenCache:
    """The tokens of a data set, by one set of tokenizers at one working point.

    Args:
        root: The data set's folder; a clip's name is its path inside it.
        encoder: The encoder of the tokens.
        longest: Chunks of the longest segment that will be read; `self.longest` may be more.
        dtype: The dtype of latents and features on the disk.
        folder: The folder of the tokens, by default `<root>/tokens`.
        keep_index: Whether the index of all shards is kept in files: training reads them, encoding makes them stale.
    """

    def __init__(
        self,
        root: Path,
        encoder: ClipEncoder,
        longest: int,
        dtype: str = "float32",
        folder: Path | None = None,
        keep_index: bool = False,
    ) -> None:
        self.root, self.encoder, self.dtype = Path(root), encoder, dtype
        self.folder = Path(folder) if folder is not None else self.root / TOKENS
        latents, *others = provenance_of(encoder, longest, dtype).items()
        track_cache = partial(TrackCache, self.folder, keep_index=keep_index)
        self.tracks: dict[Track, TrackCache] = {"latents": track_cache(*latents, longer=True)}
        self.longest: int = self.tracks["latents"].provenance["longest"]
        for track, provenance in others:  # as long as the latents, since spans follow each other
            vocabulary = getattr(encoder.audio_codec, "vocabulary", None) if track == "codes" else None
            provenance = provenance | {"longest": self.longest}
            self.tracks[track] = track_cache(track, provenance, vocabulary=vocabulary)
        self.media = MediaShards(self.root)
        self._folders: dict[str, bool] = {}

    def key(self, segment: Segment) -> str:
        """Returns the key of a segment: of its clip's path inside the data set, its span in the file, and its part."""
        return segment_key(self.name(segment.clip), segment)

    def name(self, clip: Clip) -> str:
        """Returns a clip's path inside the data set."""
        return name_of(self.root, clip)

    def stamp(self, clip: Clip) -> Stamp:
        """Returns what changes when a clip's bytes do; `None` where they are not there."""
        return self.stamp_of(self.name(clip))

    def stamp_of(self, name: str) -> Stamp:
        """Returns the stamp of the clip with this path inside the data set."""
        path = f"{self.root}/{name}"
        parent = os.path.dirname(path)
        if parent not in self._folders:
            self._folders[parent] = os.path.isdir(parent or ".")
        if self._folders[parent]:  # one check of a folder spares a check of each clip where all are gone
            try:
                stat = os.stat(path)
                return stat.st_size, stat.st_mtime_ns % 2**64  # which is negative before 1970
            except OSError:
                pass
        return self.media.stamp(name)

    def tracks_of(self, segment: Segment) -> list[Track]:
        """Returns the tracks of a segment: features only where it asks for them."""
        return [track for track in self.tracks if track != "features" or segment.features]

    def lookup(self, segment: Segment) -> SegmentState:
        """Returns the state of a segment, for its clip as it is now. A clip that is gone counts as unchanged."""
        key, stamp = self.key(segment), self.stamp(segment.clip)
        missing, why = [], None
        for name in self.tracks_of(segment):
            track = self.tracks[name]
            entry = track.entry(key)
            if entry is None or stamp not in (None, entry.stamp):
                missing.append(name)
            bad = track.bad(key)
            if bad is not None and bad[0] == stamp:
                why = bad[1]
        return SegmentState(key, tuple(missing), why)

    def shapes(self, key: str) -> list[tuple[int, ...]]:
        """Returns the latents' (T+1, C, h, w) of each span of an encoded segment."""
        entry = self.tracks["latents"].entry(key)
        assert entry is not None
        return [span.shape for span in entry.spans]

    def prefetch(self, key: str, span: int = 0) -> None:
        """Begins to fetch what `load` will read."""
        for name in ("latents", "codes"):
            if name in self.tracks:
                self.tracks[name].prefetch(key, span)

    def load(self, key: str, span: int = 0) -> Tokens:
        """Returns the latents and codes of one span of a segment.

        Raises:
            ShardError: They cannot be read.
        """
        latents = self.tracks["latents"].load(key, span)
        codes = self.tracks["codes"].load(key, span) if "codes" in self.tracks else None
        return Tokens(latents, codes)

    def load_codes(self, key: str, span: int = 0) -> Tensor:
        """Returns the codes alone, (T, F, K); raises `ShardError`."""
        return self.tracks["codes"].load(key, span)

    def load_features(self, key: str) -> Tensor:
        """Returns a thinker's features of a segment, (P, D); raises `ShardError`."""
        return self.tracks["features"].load(key, 0)

    @contextmanager
    def borrowing(self) -> Iterator[None]:
        """Makes what is loaded in the block be overwritten after it; see `ShardReader`."""
        with ExitStack() as stack:
            for track in self.tracks.values():
                stack.enter_context(track.reader.borrowing())
            yield

    def share_damage(self) -> None:
        """Makes the memory in which every process that is started from now on marks what it cannot read."""
        for track in self.tracks.values():
            _ = track.verdicts

    def damaged_segments(self) -> set[int]:
        """Returns the numbers that stand for the keys of segments that turned out to be unusable, in any process."""
        return {segment for track in self.tracks.values() for segment in track.damaged_segments()}

    def damage(self) -> dict[str, int]:
        """Returns how many samples of each shard turned out to be unusable, in any process."""
        return {name: count for track in self.tracks.values() for name, count in track.damage().items()}

    def refuse_stale(self, segments: Iterable[Segment]) -> None:
        """Refuses, or logs, that there are only tokens of other tokenizers or settings.

        Raises:
            CacheError: The clips to encode again are not there.
        """
        stale = [track for track in self.tracks.values() if not track.exists]
        if not stale or not any(self.folder.glob(f"*/{MADE_WITH}")):
            return
        there = any(self.stamp(segment.clip) is not None for segment in segments)
        for track in stale:
            others = differences(track.provenance, track.others)
            why = "; ".join(f"{folder} was made with {keys}" for folder, keys in others)
            if not there:
                raise CacheError(
                    f"{self.folder} holds no {track.track} of this run's tokenizers and settings, and the clips to "
                    f"make them from are not in {self.root}: {why or f'it has no {track.track} at all'}; set these "
                    "keys to what the tokens were made with, or encode again with `vidchat data encode`"
                )
            if why:
                log.info("encoding %s again: %s", track.track, why)


def name_of(root: Path, clip: Clip) -> str:
    """Returns a clip's path inside a data set's folder; by pathlib it would take most of the time of an index."""
    path, start = str(clip.path), f"{root}/"
    return path[len(start) :] if path.startswith(start) else clip.path.relative_to(root).as_posix()


def segment_key(name: str, segment: Segment) -> str:
    """Returns the key of a segment whose clip has this path inside the data set."""
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", segment.clip.path.stem)[:40]
    return f"{stem}-{key_of(segment_number(name, segment))}"


def part_of(dialogue: Dialogue, turn: Turn) -> Part:
    """Returns the part of a turn's clip that is encoded: the beginning of both where two people start together."""
    if turn.role == "responder":
        return "spans" if dialogue.branch == "single" else "first"
    return "first" if starts_together(dialogue, turn) else "last"


def starts_together(dialogue: Dialogue, turn: Turn) -> bool:
    """Returns whether the other person has a turn that starts with this one, as in the listening branch."""
    if dialogue.branch == "listening":
        return True
    others = [other.start for other in dialogue.turns if other.role != turn.role and other.start is not None]
    return turn.start is not None and any(abs(start - turn.start) < TOGETHER_S for start in others)


def segment_number(name: str, segment: Segment) -> int:
    """Returns the number that stands for the key of a segment."""
    identity = dumps([name, segment.clip.start, segment.clip.end, segment.part])
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big")
