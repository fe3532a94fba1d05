"""One track of a token cache: the index of its shards, and its tokens read at known places.

Latents, codes and features are a track each, in a folder whose name fingerprints what the tokens were made with
(`vidchat.data.tokens.provenance`). Each shard's index tells of its pieces, and of those that could not be encoded.
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

UNSEEN, BAD, GOOD = 0, 1, 2  # of a sample's values


class TrackCache:
    """The shards of one track, as far as they were made with the same as would be made now.

    Args:
        folder: The data set's folder of tokens.
        track: Which track.
        ingredients: Everything that decides its tokens.
        longer: Whether a cache that differs only in having longer pieces serves too; the shortest such is read.
        vocabulary: V of codes, which are 0 .. V-1; `None` if it is not known.
        keep_index: Whether what the shards' indexes say is kept in a file.

    Attributes:
        folder: Of this track.
        exists: Whether there is anything.
        others: What other caches of this track were made with, by folder.

    Raises:
        CacheError: A folder bears a fingerprint that is not of what it says it was made with.
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
        """Makes the folder and says what it is made with."""
        if not self.exists:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / MADE_WITH, json.dumps(self.provenance, indent=1, sort_keys=True))
            self.exists = True

    @cached_property
    def index(self) -> TrackIndex:
        """What the shards' indexes tell; read when it is first needed."""
        return TrackIndex(self.folder, self._keep_index)

    def generation(self, key: str) -> int:
        """One more than that of the shard that tells of a piece, 0 if none does."""
        entry, bad = self.index.entry(key), self.index.bad(key)
        shards = ([] if entry is None else [entry.shard]) + ([] if bad is None else [bad[2]])
        return max((self.index.generations[shard] + 1 for shard in shards), default=0)

    @property
    def shards(self) -> list[Path]:
        return self.index.shards

    def entry(self, key: str) -> Entry | None:
        """An encoded piece, or `None`."""
        return self.index.entry(key)

    def bad(self, key: str) -> tuple[Stamp, str] | None:
        """Why a piece could not be encoded, and the stamp its clip had."""
        found = self.index.bad(key)
        return None if found is None else found[:2]

    def forget(self) -> None:
        """Reads the index again when it is needed."""
        self.__dict__.pop("index", None)
        self.__dict__.pop("verdicts", None)

    @cached_property
    def verdicts(self) -> Tensor:
        """(samples,) uint8 that every process shares: which samples turned out to be unusable, and which to be good."""
        return zeros_shared(self.index.count)

    def ahead(self, key: str, span: int) -> None:
        """Begins to fetch what `load` will read."""
        entry = self._known(key)
        self.reader.ahead(self.shards[entry.shard], entry.samples[span].member)

    def load(self, key: str, span: int) -> Tensor:
        """One span's tokens, as stored.

        Raises:
            ShardError: They cannot be read, or hold what no tokenizer makes; the sample is marked in `verdicts`.
        """
        entry = self._known(key)
        shard, sample, number = self.shards[entry.shard], entry.samples[span], entry.number + span
        try:
            tokens = self.reader.tensor(shard, sample.member, self.track)
            if tuple(tokens.shape) != sample.shape:
                raise ShardError(f"{shard}: holds {tuple(tokens.shape)} where its index says {sample.shape}; copy both")
            # Looking at all values takes longer than reading them; the checksum says that they are still the same.
            why = None if self.verdicts[number] == GOOD else implausible(self.track, tokens, self.vocabulary)
            if why is not None:
                raise ShardError(f"{shard}: sample {key}/{span} is bad: {why}; delete the shard and encode again")
        except ShardError:
            self.verdicts[number] = BAD
            raise
        self.verdicts[number] = GOOD
        return tokens

    def _known(self, key: str) -> Entry:
        entry = self.entry(key)
        if entry is None:
            raise KeyError(f"{self.folder} holds no piece {key}")
        return entry

    def _bad_samples(self) -> np.ndarray:
        """(n,) the numbers of samples that turned out to be unusable."""
        if "verdicts" not in self.__dict__:
            return np.zeros(0, np.int64)
        return np.flatnonzero(self.verdicts.numpy() == BAD)

    def damaged_pieces(self) -> list[int]:
        """The numbers that stand for the keys of the pieces of which a sample turned out to be unusable."""
        bad = self._bad_samples()
        return self.index.segments_of(bad) if len(bad) else []

    def damage(self) -> dict[str, int]:
        """How many samples of each shard turned out to be unusable."""
        bad = self._bad_samples()
        shards = Counter(self.index.shards_of(bad).tolist() if len(bad) else [])
        return {f"{self.folder.name}/{self.shards[shard].name}": count for shard, count in sorted(shards.items())}
