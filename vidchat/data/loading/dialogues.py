"""The dialogues of a folder by row, and columns of what loading needs of all of them at once.

Both come from an index beside the manifest (`vidchat.data.index`), which is built when the folder is first opened, and
again when the manifest has changed. A dialogue is parsed from its JSON each time it is read.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, get_args, overload

import numpy as np
import xxhash
from rich.progress import track

from vidchat.data.folder import FolderError, make_dialogue, manifest_of, parse_entry, usable
from vidchat.data.index import Index, IndexWriter, StaleIndexError, open_index
from vidchat.data.loading.selection import question_of
from vidchat.data.report import Report
from vidchat.data.tokens.encoder import Part, Segment
from vidchat.data.tokens.token_cache import name_of, part_of, segment_number, starts_together
from vidchat.dialogue import Branch, Dialogue, Role, Split, Tier

FORMAT = 4  # of the index; another number makes old ones void
FILE = "dialogues.index.arrow"
LONG = 64 << 20  # bytes of a manifest whose indexing takes long enough for a progress bar
MOST_TOPS = 1000  # top folders that are distinguished
BRANCHES, TIERS, SPLITS = get_args(Branch), get_args(Tier), get_args(Split)
PARTS, ROLE_NAMES = get_args(Part), get_args(Role)
# Dialogues; where the turns of each begin (and a last row: where all end); turns; the rows of the turns sorted by
# segment, the part of a turn's clip that is encoded; and the scores of responders' turns, those of one name together.
TABLES = {
    "dialogues": {"branch": "u1", "tier": "u1", "split": "u1", "person": "u8", "check": "u4"},
    "begins": {"turn": "i8"},
    "turns": {"segment": "u8", "part": "i1", "role": "i1", "top": "i2", "start": "f8", "seconds": "f8", "back": "i4",
              "together": "i1"},
    "sorted": {"turn": "u4"},
    "scores": {"turn": "u4", "value": "f8"},
}  # fmt: skip


class Dialogues(Sequence[Dialogue]):
    """Dialogues by row.

    Args:
        root: The folder.

    Raises:
        FolderError: It holds no data set, or no usable dialogue.

    Attributes:
        report: The lines of the manifest that were left out, and why.
        turns: (t,) columns of the turns of all dialogues, those of one dialogue together: `segment`, the number that
            stands for the key of the segment; `part` and `role`, positions in `PARTS` and `ROLE_NAMES`; `top`, the
            position in `tops` of the clip's top folder, -1 for further ones; `start`, on the dialogue's clock, and
            `seconds`, the clip's length, NaN where they are not known; `back`, how many turns before a turn of the
            responder the one is that it answers (`question_of`), 0 for none; `together`, whether the other person has
            a turn that starts with it.
        tops: Names of folders in the root, "" for the root itself.
        sorted: (t,) the turns sorted by segment.
        first: (n+1,) the first turn of each dialogue, and the number of all turns.
        branch: (n,) the position of the branch of each dialogue in `BRANCHES`.
        person: (n,) the hash of the name of the responder.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        manifest = manifest_of(self.root)
        status = manifest.stat()
        stamp = f"{FORMAT} {manifest.name} {status.st_size} {status.st_mtime_ns}"
        self._use(open_index(self.root / FILE, stamp, partial(_build, self.root, stamp)))

    def _use(self, index: Index) -> None:
        self._index, tables, more = index, index.tables, index.more
        self._columns, self._scores, self._scored = tables["dialogues"], tables["scores"], more["scored"]
        self.report = Report("dialogues", len(self), [(where, why) for where, why in more["skipped"]])
        self.turns, self.tops, self.sorted = tables["turns"], more["tops"], tables["sorted"]["turn"]
        self.first = tables["begins"]["turn"]
        self.branch, self.person = self._columns["branch"], self._columns["person"]

    def rows(self, split: Split | None = None, branch: Branch | None = None, tier: Tier | None = None) -> np.ndarray:
        """Returns (n,) int32, the rows of the dialogues with these properties, in order; `None` is any."""
        match = np.ones(len(self), bool)
        for name, value, names in (("branch", branch, BRANCHES), ("tier", tier, TIERS), ("split", split, SPLITS)):
            if value is not None:
                match &= self._columns[name] == names.index(value)
        return np.flatnonzero(match).astype(np.int32)

    def scores(self, turns: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Returns (n, S) float64, the scores of n turns of responders by name; NaN where there is none."""
        scores = np.full((len(turns), len(names)), np.nan)
        for column, name in enumerate(names):
            first, end = self._scored.get(name, (0, 0))
            owners, values = (self._scores[key][first:end] for key in ("turn", "value"))
            if end > first:
                match = np.minimum(owners.searchsorted(turns.astype(owners.dtype)), end - first - 1)
                mine = owners[match] == turns
                scores[mine, column] = values[match[mine]]
        return scores

    def __len__(self) -> int:
        return len(self._columns["branch"])

    @overload
    def __getitem__(self, row: int) -> Dialogue: ...
    @overload
    def __getitem__(self, row: slice) -> list[Dialogue]: ...
    def __getitem__(self, row: int | slice) -> Dialogue | list[Dialogue]:
        if isinstance(row, slice):
            return [self[k] for k in range(*row.indices(len(self)))]
        return make_dialogue(self.root, parse_entry(self.text(row)), media=False)

    def names(self, row: int) -> list[str]:
        """Returns the paths of the clips of a dialogue's turns, inside the folder."""
        return [str(PurePosixPath(turn["clip"])) for turn in parse_entry(self.text(row))["turns"]]

    def text(self, row: int) -> str:
        """Returns the JSON of a dialogue."""
        if not 0 <= row < len(self):
            raise IndexError(f"dialogue {row} of {len(self)}")
        row = int(row)
        for index in (self._index, None):
            try:
                text = (index or self._rebuild()).text(row)
                if xxhash.xxh32_intdigest(text) == self._columns["check"][row]:
                    return text.decode("utf-8", "surrogatepass")
            except StaleIndexError:
                pass
        raise FolderError(f"{self.root}: its {FILE} is damaged again and again; check the disk")

    def _rebuild(self) -> Index:
        """Returns the index, built again since its file turned out damaged."""
        if self._index.path is not None:
            self._index.path.unlink(missing_ok=True)
        fresh = Dialogues(self.root)._index
        if fresh.stamp != self._index.stamp:
            raise FolderError(f"{manifest_of(self.root)}: has changed since it was opened; start again")
        self._use(fresh)
        return fresh

    def __getstate__(self) -> Any:
        return self.root, self._index  # another process maps the same file

    def __setstate__(self, state: Any) -> None:
        self.root = state[0]
        self._use(state[1])


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns (sum of count,): first[0], first[0] + 1, ... (count[0] of them), first[1], ..."""
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(count.sum())


def _build(root: Path, stamp: str, sink: Any) -> None:
    """Writes the index of a folder's manifest."""
    writer, report, manifest = IndexWriter(sink, stamp, TABLES), Report("dialogues"), manifest_of(root)
    tops, scores = dict[str, int](), dict[str, tuple[Any, Any]]()
    entries, long = usable(root, report, media=False), manifest.stat().st_size > LONG
    writer.row("begins", 0)
    for entry, dialogue in track(entries, f"indexing {manifest}", disable=not long):
        text = (entry if isinstance(entry, str) else json.dumps(entry)).encode("utf-8", "surrogatepass")
        writer.text(text)
        writer.row(
            "dialogues",
            BRANCHES.index(dialogue.branch),
            TIERS.index(dialogue.tier),
            SPLITS.index(dialogue.split),
            xxhash.xxh3_64_intdigest(dialogue.answer.speaker.encode("utf-8", "surrogatepass")),
            xxhash.xxh32_intdigest(text),
        )
        for position, turn in enumerate(dialogue.turns):
            name, part = name_of(root, clip := turn.clip), part_of(dialogue, turn)
            top = name.partition("/")[0] if "/" in name else ""
            if len(tops) < MOST_TOPS:
                tops.setdefault(top, len(tops))
            answers = turn.role == "responder"
            asked = question_of(dialogue, position) if answers else None
            for score, value in clip.scores.items() if answers else ():
                owners, values = scores.setdefault(score, (array("I"), array("d")))
                owners.append(writer.count("turns"))
                values.append(value)
            writer.row(
                "turns",
                segment_number(name, Segment(clip, part, 0)),
                PARTS.index(part),
                ROLE_NAMES.index(turn.role),
                tops.get(top, -1),
                math.nan if turn.start is None else turn.start,
                math.nan if clip.end is None else clip.end - clip.start,
                0 if asked is None else position - asked,
                starts_together(dialogue, turn),
            )
        writer.row("begins", writer.count("turns"))
    order = np.argsort(np.array(writer.tables["turns"]["segment"]), kind="stable")
    writer.tables["sorted"]["turn"] = order.astype(TABLES["sorted"]["turn"])
    scored = {}
    for score, columns in scores.items():
        scored[score] = writer.count("scores"), writer.count("scores") + len(columns[0])
        for column, values in zip(writer.tables["scores"].values(), columns, strict=True):
            column.extend(values)
    writer.finish({"skipped": report.skipped, "tops": list(tops), "scored": scored})
