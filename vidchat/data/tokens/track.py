"""One track of a token cache: the index of its shards, and its tokens read at known offsets.

Latents, codes and features are a track each, in a folder whose name fingerprints what the tokens were made with
(`vidchat.data.tokens.provenance`). Each shard's index lists its segments, and those that could not be encoded.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vidchat.data.tokens.encoder import Track
from vidchat.data.tokens.plausible import implausible
from vidchat.data.tokens.provenance import MADE_WITH, folder_name, identity, read_provenance
from vidchat.data.tokens.shards import ShardError, ShardReader, zeros_shared
from vidchat.data.tokens.track_index import Entry, Stamp, TrackIndex
from vidchat.runtime.atomic import write_text

UNSEEN, BAD, GOOD = 0, 1, 2  # verdicts on a sample's values


class TrackCache:
    """The shards of one track that were made with the given tokenizer and settings.

    Args:
        folder: The data set's folder of tokens.
        track: The name of the track.
        provenance: Everything that decides its tokens.
        longer: Whether a cache that differs only in having longer segments serves too; the shortest such is read.
        vocabulary: V of codes, which are 0 .. V-1; `None` if it is not known.
        keep_index: Whether the index of all shards is kept in a file.

    Attributes:
        folder: The folder of this track.
        exists: Whether there is anything.
        others: The provenance of other caches of this track, by folder.

    Raises:
        CacheError: The name of a folder does not fingerprint what its `made_with.json` says.
    """

    def __init__(
        self,
        folder: Path,
        track: Track,
        provenance: dict[str, Any],
        longer: bool = False,
        vocabulary: int | None = None,
        keep_index: bool = False,
    ) -> None:
        self._keep_index = keep_index
        self.track, self.vocabulary, self.reader = track, vocabulary, ShardReader()
        self.others: dict[Path, dict[str, Any]] = {}
        self.provenance, self.folder, self.exists = provenance, folder / folder_name(track, provenance), False
        for made in sorted(folder.glob(f"{track}-*/{MADE_WITH}")):
            theirs = read_provenance(made, track)
            more = theirs["longest"] - provenance["longest"]
            fits = identity(theirs | {"longest": 0}) == identity(provenance | {"longest": 0})
            if not fits or more < 0 or (more and not longer):
                self.others[made.parent] = theirs
            elif not self.exists or theirs["longest"] < self.provenance["longest"]:
                self.provenance, self.folder, self.exists = theirs, made.parent, True

    def claim(self) -> None:
        """Creates the folder and writes down its provenance."""
        if not self.exists:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / MADE_WITH, json.dumps(self.provenance, indent=1, sort_keys=True))
            self.exists = True

    @cached_property
    def index(self) -> TrackIndex:
        """The index of all shards; opened when it is first needed."""
        return TrackIndex(self.folder, self._keep_index)

    def generation(self, key: str) -> int:
        """Returns one more than the generation of the shard that lists a segment, 0 if none does."""
        entry, bad = self.index.entry(key), self.index.bad(key)
        shards = ([] if entry is None else [entry.shard]) + ([] if bad is None else [bad[2]])
        return max((self.index.generation(shard) + 1 for shard in shards), default=0)

    def entry(self, key: str) -> Entry | None:
        """Returns an encoded segment, or `None`."""
        return self.index.entry(key)

    def bad(self, key: str) -> tuple[Stamp, str] | None:
        """Returns the stamp of the clip of a segment that could not be encoded, and why; else `None`."""
        bad = self.index.bad(key)
        return None if bad is None else bad[:2]

    def forget(self) -> None:
        """Makes the next use open the index again."""
        self.__dict__.pop("index", None)
        self.__dict__.pop("verdicts", None)

    @cached_property
    def verdicts(self) -> Tensor:
        """(samples,) uint8 that all processes share: which samples turned out to be unusable, and which good."""
        return zeros_shared(self.index.count)

    def prefetch(self, key: str, span: int) -> None:
        """Begins to fetch what `load` will read."""
        entry = self._known(key)
        self.reader.prefetch(self.index.shard_path(entry.shard), entry.spans[span].member)

    def load(self, key: str, span: int) -> Tensor:
        """Returns one span's tokens, as stored.

        Raises:
            ShardError: They cannot be read, or hold what no tokenizer makes; the sample is marked in `verdicts`.
        """
        entry = self._known(key)
        path, (member, shape), sample = self.index.shard_path(entry.shard), entry.spans[span], entry.first + span
        try:
            tokens = self.reader.tensor(path, member, self.track)
            if tuple(tokens.shape) != shape:
                raise ShardError(f"{path}: holds {tuple(tokens.shape)} where its index says {shape}; copy both")
            # Looking at all values takes longer than reading them; the checksum says that they are still the same.
            why = None if self.verdicts[sample] == GOOD else implausible(self.track, tokens, self.vocabulary)
            if why is not None:
                raise ShardError(f"{path}: sample {key}/{span} is bad: {why}; delete the shard and encode again")
        except ShardError:
            self.verdicts[sample] = BAD
            raise
        self.verdicts[sample] = GOOD
        return tokens

    def _known(self, key: str) -> Entry:
        entry = self.entry(key)
        if entry is None:
            raise KeyError(f"{self.folder} holds no segment {key}")
        return entry

    def _bad_samples(self) -> np.ndarray:
        """Returns (n,) the samples that turned out to be unusable."""
        if "verdicts" not in self.__dict__:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.verdicts.numpy() == BAD)

    def damaged_segments(self) -> list[int]:
        """Returns the numbers that stand for the keys of the segments of which a sample turned out to be unusable."""
        bad = self._bad_samples()
        return self.index.segments_of(bad) if len(bad) else []

    def damage(self) -> dict[str, int]:
        """Returns how many samples of each shard turned out to be unusable."""
        bad = self._bad_samples()
        shards = Counter(self.index.shards_of(bad).tolist() if len(bad) else [])
        paths = ((self.index.shard_path(shard), count) for shard, count in sorted(shards.items()))
        return {f"{self.folder.name}/{path.name}": count for path, count in paths}
