"""The systems that are scored: folders of generated clips, and the built-in ceiling and floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vidchat.bench.clips import (
    ABSENT,
    ScoredClip,
    View,
    find_clip,
    read_answer,
    read_span,
    read_truth,
    still_clip,
    unexpected_files,
)
from vidchat.bench.pairs import Pair, pair_hash
from vidchat.bench.protocol import file_hash
from vidchat.bench.responsiveness import log_path, log_value
from vidchat.bench.spans import assign_spans, count_frames
from vidchat.bench.truth_sizes import truth_sizes
from vidchat.data.media.read import Media, read_image
from vidchat.dialogue import Clip

TRUTH, SHUFFLED, FROZEN = "truth", "shuffled truth", "frozen reference"
BUILT_IN = (TRUTH, SHUFFLED, FROZEN)


@dataclass(frozen=True)
class Source:
    """The origin of a system's clip for one pair.

    Attributes:
        clip: Clip, or `None` if there is none or if it is generated from the reference.
        key: Cache key of the content.
        set_key: Cache key of the part that distances between sets take; empty if it is the part that is compared with
            the truth.
    """

    clip: Clip | None
    key: str
    set_key: str = ""


class System(Protocol):
    """Anything that has clips for pairs."""

    @property
    def name(self) -> str:
        """Returns the name in the table."""
        ...

    def source(self, pair: Pair) -> Source:
        """Returns the origin of the clip for a pair."""
        ...

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> ScoredClip:
        """Decodes the clip for a pair, cut to the length of the truth."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of generated clips, each named by its pair's id.

    Attributes:
        name: Name in the table.
        folder: Folder of the clips.
        spans: Number of frames of a clip in distances between sets, by id, where it is not that of its own truth.
    """

    name: str
    folder: Path
    spans: Mapping[str, int] = field(default_factory=dict)

    def assign_spans(self, pairs: Sequence[Pair], fps: int) -> Folder:
        """Returns the folder with the true answers' lengths assigned to its clips by `spans.assign_spans`.

        Clips that cannot be opened keep their own truth's length, so that a system does not gain by leaving clips out.
        """
        clips = {pair.id: Clip(path, "") for pair in pairs if (path := find_clip(self.folder, pair.id)) is not None}
        longest = {pair.id: pair.answer_seconds for pair in pairs}
        frames = {name: count_frames(clip, fps, longest[name]) for name, clip in clips.items()}
        true = {pair.id: count_frames(pair.truth, fps, pair.answer_seconds) for pair in pairs}
        known = [name for name, count in frames.items() if count and true[name]]
        spans = assign_spans([frames[name] for name in known], [true[name] for name in known])
        others = {name: span for name, span in zip(known, spans, strict=True) if span != true[name]}
        return replace(self, spans=others)

    def source(self, pair: Pair) -> Source:
        path, span = find_clip(self.folder, pair.id), self.spans.get(pair.id)
        if path is None:
            return Source(None, "missing")
        return Source(Clip(path, pair.truth.speaker), file_hash(path), "" if span is None else f"{span} frames")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> ScoredClip:
        scored, span = read_answer(source.clip, truth, view), self.spans.get(pair.id)
        if span is None or source.clip is None or set(scored.statuses) & ABSENT:
            return scored
        return replace(scored, set_media=read_span(source.clip, span, view))

    def warnings(self, pairs: Sequence[Pair], protocol: str) -> list[str]:
        """Returns warnings about clips that belong to no pair, and about logs that name another pair or protocol."""
        warnings = []
        if names := unexpected_files(self.folder, (pair.id for pair in pairs)):
            first = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.append(f"{len(names)} of its clips belong to no pair ({first}); clips are named ID.mp4")
        logs = [(pair, log_path(clip)) for pair in pairs if (clip := find_clip(self.folder, pair.id)) is not None]
        protocols = [log_value(log, "protocol") for _, log in logs]
        for other in sorted(set(protocols) - {protocol, None}, key=str):
            count = protocols.count(other)
            warnings.append(f"{count} of its logs say that it answered by protocol '{other}', and not '{protocol}'")
        if others := [p.id for p, log in logs if log_value(log, "pair") not in (None, pair_hash(p))]:
            first = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            warnings.append(f"{len(others)} of its logs say that it answered other pairs of these ids ({first})")
        return [f"'{self.name}': {warning}" for warning in warnings]


@dataclass(frozen=True)
class TrueAnswers:
    """The true answers, or, as a floor, those of other pairs, by another speaker if there is one.

    Compared with the truth, another pair's answer is cut or ends early, as any system's does. In distances between sets
    it keeps its own length, so that both sets have the same clips, as for a folder of these clips.

    Attributes:
        name: Name in the table.
        answered_by: Pair whose true answer is taken, by the id of the pair that is answered.
    """

    name: str
    answered_by: dict[str, Pair]

    def source(self, pair: Pair) -> Source:
        clip = self.answered_by[pair.id].truth
        return Source(clip, clip_key(clip), "" if clip == pair.truth else "own length")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> ScoredClip:
        if source.clip == pair.truth:
            return ScoredClip(truth, ("good",), "", len(truth.frames) / view.fps)
        return replace(read_answer(source.clip, truth, view), set_media=read_truth(self.answered_by[pair.id], view))


@dataclass(frozen=True)
class FrozenReference:
    """The reference as a still clip in silence, as long as the truth."""

    name: str = FROZEN

    def source(self, pair: Pair) -> Source:
        return Source(None, f"frozen {file_hash(pair.reference)}")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> ScoredClip:
        length = len(truth.frames)
        media = still_clip(read_image(pair.reference, view.size), length, view)
        return ScoredClip(media, ("silent",), "it is silent", length / view.fps)


def built_in(pairs: Sequence[Pair]) -> list[System]:
    """Returns the ceiling and the floors; true answers that cannot be opened are not shuffled."""
    own = {pair.id: pair for pair in pairs}
    opened = {name for names in truth_sizes(pairs).values() for name in names}
    known = [pair for pair in pairs if pair.id in opened]
    others = {pair.id: other for pair, other in zip(known, shuffled(known), strict=True)}
    return [TrueAnswers(TRUTH, own), TrueAnswers(SHUFFLED, own | others), FrozenReference()]


def clip_key(clip: Clip) -> str:
    """Returns the cache key of a clip's content."""
    return f"{file_hash(clip.path)} {clip.start!r} {clip.end!r}"


def shuffled(pairs: Sequence[Pair]) -> list[Pair]:
    """Permutes the pairs so that each gets a pair of another speaker, as far as possible.

    The pairs are sorted by speaker and rotated by the count of the most frequent speaker.
    """
    order = sorted(range(len(pairs)), key=lambda index: (pairs[index].truth.speaker, index))
    step = max(Counter(pair.truth.speaker for pair in pairs).values(), default=0) % max(1, len(pairs)) or 1
    moved = {order[index]: order[(index + step) % len(order)] for index in range(len(order))}
    return [pairs[moved[index]] for index in range(len(pairs))]
