"""Who is scored: folders of generated clips; in every report also the truth, a wrong answer, and a still frame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from vidchat.bench.clips import ABSENT, Found, View, find, frozen, read_made, read_span, read_truth, unexpected_files
from vidchat.bench.pairs import Pair, pair_hash
from vidchat.bench.protocol import file_hash
from vidchat.bench.responsiveness import log_path, made_by
from vidchat.bench.sizes import sizes_of
from vidchat.bench.spans import assign_spans, frames_of
from vidchat.data.media.read import Media, read_image
from vidchat.dialogue import Clip

TRUTH, SHUFFLED, FROZEN = "truth", "shuffled truth", "frozen reference"
BUILT_IN = (TRUTH, SHUFFLED, FROZEN)


@dataclass(frozen=True)
class Source:
    """Where one system's clip of one pair comes from.

    Attributes:
        clip: The clip, or `None` if there is none, or if it is made of the reference.
        key: Tells its content from any other.
        whole: How much of it distances between sets take, as part of a key; empty if what is scored beside the truth.
    """

    clip: Clip | None
    key: str
    whole: str = ""


class System(Protocol):
    """Anything that has a clip for a pair."""

    @property
    def name(self) -> str: ...

    def source(self, pair: Pair) -> Source: ...

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> Found: ...


@dataclass(frozen=True)
class Folder:
    """A folder of generated clips, each named by its pair's id.

    Attributes:
        name: Stands in the table.
        folder: Where the clips are.
        spans: Frames that distances between sets take of the clips of some pairs, by id; of others, their own truth's.
    """

    name: str
    folder: Path
    spans: Mapping[str, int] = field(default_factory=dict)

    def assign_spans(self, pairs: Sequence[Pair], fps: int) -> Folder:
        """Returns the folder with the true answers' lengths dealt out among its clips, as a set has no order.

        Clips that cannot be opened keep their own truth's length, so that nothing is gained by leaving clips out.
        """
        clips = {pair.id: Clip(path, "") for pair in pairs if (path := find(self.folder, pair.id)) is not None}
        longest = {pair.id: pair.answer_seconds for pair in pairs}
        frames = {name: frames_of(clip, fps, longest[name]) for name, clip in clips.items()}
        true = {pair.id: frames_of(pair.truth, fps, pair.answer_seconds) for pair in pairs}
        known = [name for name, count in frames.items() if count and true[name]]
        spans = assign_spans([frames[name] for name in known], [true[name] for name in known])
        others = {name: span for name, span in zip(known, spans, strict=True) if span != true[name]}
        return replace(self, spans=others)

    def source(self, pair: Pair) -> Source:
        path, span = find(self.folder, pair.id), self.spans.get(pair.id)
        if path is None:
            return Source(None, "missing")
        return Source(Clip(path, pair.truth.speaker), file_hash(path), "" if span is None else f"{span} frames")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> Found:
        found, span = read_made(source.clip, truth, view), self.spans.get(pair.id)
        if span is None or source.clip is None or set(found.statuses) & ABSENT:
            return found
        return replace(found, alone=read_span(source.clip, span, view))

    def warnings(self, pairs: Sequence[Pair], protocol: str) -> list[str]:
        """Returns warnings of clips that belong to no pair, and of logs that name another pair or protocol."""
        warnings = []
        if names := unexpected_files(self.folder, (pair.id for pair in pairs)):
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            warnings.append(f"{len(names)} of its clips belong to no pair ({some}); clips are named ID.mp4")
        logs = [(pair, log_path(clip)) for pair in pairs if (clip := find(self.folder, pair.id)) is not None]
        said = [made_by(log, "protocol") for _, log in logs]
        for other in sorted(set(said) - {protocol, None}, key=str):
            count = said.count(other)
            warnings.append(f"{count} of its logs say that it answered by protocol '{other}', and not '{protocol}'")
        if strangers := [p.id for p, log in logs if made_by(log, "pair") not in (None, pair_hash(p))]:
            some = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
            warnings.append(f"{len(strangers)} of its logs say that it answered other pairs of these ids ({some})")
        return [f"'{self.name}': {warning}" for warning in warnings]


@dataclass(frozen=True)
class Answers:
    """True answers: to each pair its own, or, as a floor, that of another pair, by another speaker if there is one.

    Another pair's answer is cut beside the truth, or ends early, as any system's does. For distances between sets it is
    as long as it is, so that both have the same set of clips; a folder of the same clips is dealt the same lengths.
    """

    name: str
    given: dict[str, Pair]

    def source(self, pair: Pair) -> Source:
        clip = self.given[pair.id].truth
        return Source(clip, clip_key(clip), "" if clip == pair.truth else "own length")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> Found:
        if source.clip == pair.truth:
            return Found(truth, ("good",), "", len(truth.frames) / view.fps)
        return replace(read_made(source.clip, truth, view), alone=read_truth(self.given[pair.id], view))


@dataclass(frozen=True)
class Frozen:
    """The reference frame standing still, in silence, as long as the truth."""

    name: str = FROZEN

    def source(self, pair: Pair) -> Source:
        return Source(None, f"frozen {file_hash(pair.reference)}")

    def read(self, pair: Pair, source: Source, truth: Media, view: View) -> Found:
        length = len(truth.frames)
        media = frozen(read_image(pair.reference, view.size), length, view)
        return Found(media, ("silent",), "it is silent", length / view.fps)


def built_in(pairs: Sequence[Pair]) -> list[System]:
    """The ceiling and the floors; a true answer that cannot be opened is no other pair's."""
    own = {pair.id: pair for pair in pairs}
    opened = {name for names in sizes_of(pairs).values() for name in names}
    known = [pair for pair in pairs if pair.id in opened]
    others = {pair.id: other for pair, other in zip(known, shuffled(known), strict=True)}
    return [Answers(TRUTH, own), Answers(SHUFFLED, own | others), Frozen()]


def clip_key(clip: Clip) -> str:
    """Tells a clip's content from any other's."""
    return f"{file_hash(clip.path)} {clip.start!r} {clip.end!r}"


def shuffled(pairs: Sequence[Pair]) -> list[Pair]:
    """Every pair once, in the place of another whose responder is somebody else, as far as there are such.

    In order of speakers, everybody moves by as many places as the most frequent speaker has.
    """
    order = sorted(range(len(pairs)), key=lambda index: (pairs[index].truth.speaker, index))
    step = max(Counter(pair.truth.speaker for pair in pairs).values(), default=0) % max(1, len(pairs)) or 1
    moved = {order[place]: order[(place + step) % len(order)] for place in range(len(order))}
    return [pairs[moved[index]] for index in range(len(pairs))]
