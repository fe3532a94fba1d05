"""Token caches: every piece of a data set encoded once, and read from then on.

    <root>/tokens/latents-<fingerprint>/made_with.json  shard-*.tar  shard-*.json  index.json
    <root>/tokens/codes-<fingerprint>/...

Latents, codes and features are tracks of their own, so that a stage without sound and one with it share latents, and a
thinker's features can be added later. A fingerprint covers everything that decides the tokens; `made_with.json` says
the same in words. A folder whose clips are not there (any more) is read all the same: tokens are all that training
needs. `vidchat.data.encode` fills a cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vidchat.data.folder import FolderError
from vidchat.data.media_shards import MediaShards
from vidchat.data.shards import Member, ShardError, ShardReader, dumps, indexes, write_whole, zeros_shared
from vidchat.data.tokens import VERSION, ClipEncoder, Piece, Tokens, Track, WorkingPoint
from vidchat.dialogue import Clip

log = logging.getLogger(__name__)
MADE_WITH = "made_with.json"
TOKENS = "tokens"  # the folder of a data set's tokens
Stamp = tuple[int, int] | None  # of a clip's bytes: what changes when they do; None where they are not there


class CacheError(FolderError):
    """Tokens that do not belong to the tokenizers at hand, or that are not there yet."""


class Sample(NamedTuple):
    """One span's tokens: where they are, and the shape they have."""

    member: Member
    shape: tuple[int, ...]


class Found(NamedTuple):
    """How a piece stands: its key, the tracks that it lacks, and why it could not be encoded, if so."""

    key: str
    missing: tuple[Track, ...]
    bad: str | None


class Entry(NamedTuple):
    """An encoded piece: its shard, its spans, the stamp of the clip it was made of, and its first span's number."""

    shard: int
    samples: tuple[Sample, ...]
    stamp: Stamp
    number: int


class _Index:
    """What the indexes of a track's shards tell, the later made last: of two entries of a piece that one counts."""

    def __init__(self) -> None:
        self.shards: list[Path] = []
        self.generations: list[int] = []
        self.entries: dict[str, Entry] = {}
        self.bad: dict[str, tuple[Stamp, str, int]] = {}
        self.count = 0  # samples

    def add(self, path: Path, shard: dict[str, Any]) -> None:
        """Takes in the index of one shard."""
        number = len(self.shards)
        for piece in shard["pieces"]:
            samples = tuple(Sample(Member(o, s, c), tuple(shape)) for o, s, c, shape in piece["samples"])
            self.entries[piece["key"]] = Entry(number, samples, _stamp(piece["stamp"]), self.count)
            self.bad.pop(piece["key"], None)
            self.count += len(samples)
        for piece in shard["bad"]:
            self.bad[piece["key"]] = (_stamp(piece["stamp"]), piece["why"], number)
        self.shards.append(path.with_suffix(".tar"))
        self.generations.append(shard["generation"])


class TrackCache:
    """The shards of one track, as far as they were made with the same as would be made now.

    Args:
        folder: The data set's folder of tokens.
        track: Which track.
        ingredients: Everything that decides its tokens.
        longer: Whether a cache that differs only in having longer pieces serves too; the shortest such is read.

    Attributes:
        folder: Of this track.
        exists: Whether there is anything.
        others: What other caches of this track were made with, by folder.

    Raises:
        CacheError: A folder bears a fingerprint that is not of what it says it was made with.
    """

    def __init__(self, folder: Path, track: Track, ingredients: dict[str, Any], longer: bool = False) -> None:
        self.track, self.reader = track, ShardReader()
        self.others: dict[Path, dict[str, Any]] = {}
        self.ingredients, self.folder, self.exists = ingredients, folder / _name(track, ingredients), False
        for made in sorted(folder.glob(f"{track}-*/{MADE_WITH}")):
            theirs = _made_with(made, track)
            more = theirs["longest"] - ingredients["longest"]
            fits = _identity(theirs | {"longest": 0}) == _identity(ingredients | {"longest": 0})
            if not fits or more < 0 or (more and not longer):
                self.others[made.parent] = theirs
            elif not self.exists or theirs["longest"] < self.ingredients["longest"]:
                self.ingredients, self.folder, self.exists = theirs, made.parent, True

    def claim(self) -> None:
        """Makes the folder and says what it is made with."""
        if not self.exists:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / MADE_WITH, json.dumps(self.ingredients, indent=1, sort_keys=True))
            self.exists = True

    @cached_property
    def _index(self) -> _Index:
        read = [(path, json.loads(path.read_text())) for path in indexes(self.folder)]
        found = _Index()
        for path, shard in sorted(read, key=lambda one: (one[1]["generation"], one[0])):
            found.add(path, shard)
        return found

    def generation(self, key: str) -> int:
        """One more than that of the shard that tells of a piece, 0 if none does."""
        index = self._index
        shards = [index.entries[key].shard] if key in index.entries else []
        shards += [index.bad[key][2]] if key in index.bad else []
        return max((index.generations[shard] + 1 for shard in shards), default=0)

    @property
    def shards(self) -> list[Path]:
        return self._index.shards

    def entry(self, key: str) -> Entry | None:
        """An encoded piece, or `None`."""
        return self._index.entries.get(key)

    def bad(self, key: str) -> tuple[Stamp, str] | None:
        """Why a piece could not be encoded, and the stamp its clip had."""
        found = self._index.bad.get(key)
        return None if found is None else found[:2]

    def forget(self) -> None:
        """Reads the index again when it is needed."""
        self.__dict__.pop("_index", None)
        self.__dict__.pop("damaged", None)

    @cached_property
    def damaged(self) -> Tensor:
        """(samples,) uint8 that every process shares: which samples turned out to be unreadable."""
        return zeros_shared(self._index.count)

    def ahead(self, key: str, span: int) -> None:
        """Begins to fetch what `load` will read."""
        entry = self._index.entries[key]
        self.reader.ahead(self.shards[entry.shard], entry.samples[span].member)

    def load(self, key: str, span: int) -> Tensor:
        """One span's tokens, as stored.

        Raises:
            ShardError: They cannot be read; the sample is marked in `damaged`.
        """
        entry = self._index.entries[key]
        try:
            return self.reader.tensor(self.shards[entry.shard], entry.samples[span].member, self.track)
        except ShardError:
            self.damaged[entry.number + span] = 1
            raise

    def damage(self) -> dict[str, int]:
        """How many samples of each shard turned out to be unreadable."""
        counts: dict[str, int] = {}
        if "damaged" in self.__dict__ and bool(self.damaged.any()):
            for entry in self._index.entries.values():
                found = int(self.damaged[entry.number : entry.number + len(entry.samples)].sum())
                if found:
                    name = f"{self.folder.name}/{self.shards[entry.shard].name}"
                    counts[name] = counts.get(name, 0) + found
        return counts


class TokenCache:
    """The tokens of a data set, by one set of tokenizers at one working point.

    Args:
        root: The data set's folder; a clip's name is its path inside it.
        encoder: What makes the tokens.
        longest: Chunks of the longest piece that will be asked for; there may be more in `self.longest`.
        dtype: Of latents and features on the disk.
        folder: Where tokens are kept, by default `<root>/tokens`.
    """

    def __init__(
        self,
        root: Path,
        encoder: ClipEncoder,
        longest: int,
        dtype: str = "float32",
        folder: Path | None = None,
    ) -> None:
        self.root, self.encoder, self.dtype = Path(root), encoder, dtype
        self.folder = Path(folder) if folder is not None else self.root / TOKENS
        latents, *others = _ingredients(encoder, longest, dtype).items()
        self.tracks: dict[Track, TrackCache] = {"latents": TrackCache(self.folder, *latents, longer=True)}
        self.longest: int = self.tracks["latents"].ingredients["longest"]
        for track, ingredients in others:  # of one length with the latents, since spans follow each other
            self.tracks[track] = TrackCache(self.folder, track, ingredients | {"longest": self.longest})
        self.media = MediaShards(self.root)
        self._folders: dict[Path, bool] = {}

    @classmethod
    def of(
        cls, root: Path, encoder: ClipEncoder, point: WorkingPoint, longest: int, folder: Path | None = None
    ) -> TokenCache:
        """A cache at a working point."""
        return cls(root, encoder, longest, point.dtype, folder)

    def key(self, piece: Piece) -> str:
        """Names a piece by its clip's path inside the data set, the clip's span in the file, and the part of it."""
        name, clip = self.name(piece.clip), piece.clip
        whole = dumps([name, clip.start, clip.end, piece.part])
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", clip.path.stem)[:40]
        return f"{stem}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"

    def name(self, clip: Clip) -> str:
        """A clip's path inside the data set."""
        return clip.path.relative_to(self.root).as_posix()

    def stamp(self, clip: Clip) -> Stamp:
        """What changes when a clip's bytes do; `None` where they are not there."""
        parent = clip.path.parent
        if parent not in self._folders:
            self._folders[parent] = parent.is_dir()
        if self._folders[parent]:  # one look at a folder spares a look at each clip where all are gone
            try:
                stat = clip.path.stat()
                return stat.st_size, stat.st_mtime_ns
            except OSError:
                pass
        return self.media.stamp(self.name(clip))

    def tracks_of(self, piece: Piece) -> list[Track]:
        """The tracks that a piece has: features only where it asks for them."""
        return [track for track in self.tracks if track != "features" or piece.features]

    def look(self, piece: Piece) -> Found:
        """How a piece stands, its clip being what it is now. A clip that is gone counts as unchanged."""
        key, stamp = self.key(piece), self.stamp(piece.clip)
        missing, why = [], None
        for name in self.tracks_of(piece):
            track = self.tracks[name]
            entry = track.entry(key)
            if entry is None or stamp not in (None, entry.stamp):
                missing.append(name)
            bad = track.bad(key)
            if bad is not None and bad[0] == stamp:
                why = bad[1]
        return Found(key, tuple(missing), why)

    def shapes(self, key: str) -> list[tuple[int, ...]]:
        """Of each span of an encoded piece, its latents' (T+1, C, h, w)."""
        entry = self.tracks["latents"].entry(key)
        assert entry is not None
        return [sample.shape for sample in entry.samples]

    def ahead(self, key: str, span: int = 0) -> None:
        """Begins to fetch what `load` will read."""
        for name in ("latents", "codes"):
            if name in self.tracks:
                self.tracks[name].ahead(key, span)

    def load(self, key: str, span: int = 0) -> Tokens:
        """The latents and codes of one span of a piece.

        Raises:
            ShardError: They cannot be read.
        """
        latents = self.tracks["latents"].load(key, span)
        codes = self.tracks["codes"].load(key, span) if "codes" in self.tracks else None
        return Tokens(latents, codes)

    def load_codes(self, key: str, span: int = 0) -> Tensor:
        """The codes alone; raises `ShardError`."""
        return self.tracks["codes"].load(key, span)

    def load_features(self, key: str) -> Tensor:
        """What a thinker made of a piece, (P, D); raises `ShardError`."""
        return self.tracks["features"].load(key, 0)

    @contextmanager
    def borrowing(self) -> Iterator[None]:
        """What is loaded in the block is overwritten after it; see `ShardReader`."""
        with ExitStack() as stack:
            for track in self.tracks.values():
                stack.enter_context(track.reader.borrowing())
            yield

    def share_damage(self) -> None:
        """Makes the place where every process that is started from now on marks what it cannot read."""
        for track in self.tracks.values():
            _ = track.damaged

    def damage(self) -> dict[str, int]:
        """How many samples of each shard turned out to be unreadable, in any process."""
        return {name: count for track in self.tracks.values() for name, count in track.damage().items()}

    def refuse_stale(self, pieces: Iterable[Piece]) -> None:
        """Says so where there are only tokens that were made with something else.

        Raises:
            CacheError: And the clips to make others from are not there.
        """
        stale = [track for track in self.tracks.values() if not track.exists]
        if not stale or not any(self.folder.glob(f"*/{MADE_WITH}")):
            return
        there = any(self.stamp(piece.clip) is not None for piece in pieces)
        for track in stale:
            told = "; ".join(f"{folder} was made with {told}" for folder, told in _differences(track))
            if not there:
                raise CacheError(
                    f"{self.folder} holds no {track.track} of this run's tokenizers and settings, and the clips to "
                    f"make them from are not in {self.root}: {told or f'it has no {track.track} at all'}; set these "
                    "keys to what the tokens were made with, or encode again with `vidchat data encode`"
                )
            if told:
                log.info("encoding %s anew: %s", track.track, told)


def _ingredients(encoder: ClipEncoder, longest: int, dtype: str) -> dict[Track, dict[str, Any]]:
    """Everything that decides the tokens, by track, in the clear."""
    common = {"version": VERSION, "fps": encoder.fps, "longest": longest}
    pictures = {"size": list(encoder.size), "turn": encoder.turn, "dtype": dtype}
    clock = encoder.clock
    made: dict[Track, dict[str, Any]] = {"latents": common | pictures | {"tokenizer": describe(encoder.video_vae)}}
    if encoder.audio_codec is not None:
        made["codes"] = common | {
            "tokenizer": describe(encoder.audio_codec),
            "sample_rate": clock.sample_rate,
            "frames_per_chunk": clock.frames_per_chunk,
            "temporal_stride": clock.temporal_stride,
        }
    if encoder.thinker is not None:
        thinker = {"tokenizer": describe(encoder.thinker), "sample_rate": clock.sample_rate}
        made["features"] = common | pictures | thinker
    return made


def describe(tokenizer: Any) -> dict[str, Any]:
    """A tokenizer's class, fingerprint and, if it has one, configuration, as JSON holds them."""
    told: dict[str, Any] = {"class": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint()}
    if hasattr(tokenizer, "config"):
        told["config"] = tokenizer.config()
    plain: dict[str, Any] = json.loads(json.dumps(told, default=str))
    return plain


def _identity(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree. A tokenizer's fingerprint covers its configuration, which is kept to name differences by."""
    tokenizer = {key: value for key, value in ingredients["tokenizer"].items() if key != "config"}
    return {**ingredients, "tokenizer": tokenizer}


def _name(track: str, ingredients: Mapping[str, Any]) -> str:
    return f"{track}-{hashlib.sha256(dumps(_identity(ingredients)).encode()).hexdigest()[:16]}"


def _made_with(path: Path, track: str) -> dict[str, Any]:
    try:
        made = json.loads(path.read_text())
    except ValueError:
        made = None
    whole = isinstance(made, dict) and "longest" in made and isinstance(made.get("tokenizer"), dict)
    if not whole or _name(track, made) != path.parent.name:
        raise CacheError(f"{path}: was changed, so nobody knows what made these tokens; delete {path.parent}")
    return dict(made)


def _differences(track: TrackCache) -> Iterator[tuple[Path, str]]:
    """Of each other cache, the keys that differ, the nearest cache first."""
    ours = dict(_leaves(track.ingredients))
    others: list[tuple[int, Path, str]] = []
    for folder, made in track.others.items():
        theirs = dict(_leaves(made))
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        told = ", ".join(f"{key}={theirs.get(key)} (here {ours.get(key)})" for key in keys)
        others.append((len(keys), folder, told))
    for _, folder, told in sorted(others):
        yield folder, told


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def _stamp(told: list[int] | None) -> Stamp:
    return None if told is None else (told[0], told[1])
