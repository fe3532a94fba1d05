"""One pair at a time: the clips of all systems, decoded once for all measures, to values and features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vidchat.bench.clips import ABSENT, RULE, SHORT, Found, View, read_reference, read_truth, unscored
from vidchat.bench.feature_cache import FeatureCache, fingerprint
from vidchat.bench.listening import is_listening
from vidchat.bench.metric import Features, Metric, bounded_values, titled
from vidchat.bench.pairs import Pair
from vidchat.bench.processes import as_note, is_general
from vidchat.bench.protocol import file_hash, protocol_string, text_hash
from vidchat.bench.responsiveness import log_path, read_log
from vidchat.bench.results import PairScore
from vidchat.bench.summary import COVERAGE, Scored
from vidchat.bench.systems import BUILT_IN, TRUTH, Source, System, clip_key
from vidchat.data.media.read import Media
from vidchat.dialogue import Clip


@dataclass(frozen=True)
class Task:
    """Everything that a process needs to score a pair.

    Attributes:
        systems: The truth first.
        build: Makes the measures; each process calls it once, as backends do not travel between processes.
        view: How clips are decoded.
        store: Where features are kept.
    """

    systems: Sequence[System]
    build: Callable[[], Sequence[Metric]]
    view: View
    store: Path

    @cached_property
    def metrics(self) -> Sequence[Metric]:
        return self.build()

    @cached_property
    def specs(self) -> Sequence[str]:
        """The measures' part of the protocol strings; made once, as weights are hashed for it."""
        return [protocol_string(metric.spec()) for metric in self.metrics]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("metrics", "specs")}


def score_pair(task: Task, pair: Pair) -> Scored:
    """Every system's answer to one pair.

    Raises:
        MediaError: The true answer, or the reference where a measure needs it, cannot be read.
        BackendError: The weights do not fit.
    """
    desk = PairScorer(task, pair)
    return {system.name: desk.score(system) for system in task.systems}


class PairScorer:
    """One pair on the desk: clips are decoded when first needed, and at most once."""

    def __init__(self, task: Task, pair: Pair) -> None:
        self.task, self.pair, self.store = task, pair, FeatureCache(task.store)
        self.truth_key = f"{clip_key(pair.truth)} {pair.answer_seconds!r} {task.view} {text_hash([RULE])}"
        self.true: list[Features] = []
        self.ceilings: list[dict[str, float]] = []

    @cached_property
    def truth(self) -> Media:
        return read_truth(self.pair, self.task.view)

    @cached_property
    def listens(self) -> bool:
        """Whether the true answer listens and says nothing; kept, so that a second run decodes nothing."""
        key = fingerprint("listens", self.pair.branch, repr(self.pair.truth.text), self.truth_key)
        if (kept := self.store.load(key)) is None:
            kept = {"listens": np.array(is_listening(self.pair, self.truth))}
            self.store.save(key, kept)
        return bool(kept["listens"])

    @cached_property
    def reference(self) -> list[Features]:
        media = read_reference(self.pair, self.task.view)
        key = f"reference {file_hash(self.pair.reference)} {self.task.view}"
        return [
            self._kept(index, key, partial(metric.read, media))[0] if metric.needs_reference else {}
            for index, metric in enumerate(self.task.metrics)
        ]

    def score(self, system: System) -> tuple[PairScore, dict[int, str]]:
        """One system's answer; one that cannot be scored is scored as if it were missing.

        Raises:
            Exception: The true answer cannot be scored, or the machine or the weights fail.
        """
        source = Source(None, "missing")
        try:
            source = system.source(self.pair)
            return self._scored(system, source, lambda: system.read(self.pair, source, self.truth, self.task.view))
        except Exception as error:
            if system.name == TRUTH or is_general(error):
                raise
            note = as_note(error, *([source.clip.path] if source.clip else []))
        nothing = Source(None, f"not scored {note}")
        empty = lambda: unscored("unreadable", note, len(self.truth.frames), self.task.view)  # noqa: E731
        return self._scored(system, nothing, empty)

    def _scored(self, system: System, source: Source, read: Callable[[], Found]) -> tuple[PairScore, dict[int, str]]:
        found = _Lazy(read)
        statuses, note, seconds, coverage = self._facts(source, found)
        absent = bool(set(statuses) & ABSENT)
        features, keys = self._features(source, found, statuses)
        share = coverage if SHORT in statuses else 1.0
        if system.name == TRUTH:
            self.true = features
            self.ceilings = self._compared(features)
        compared = [{} for _ in features] if absent else self._compared(features)
        values = {COVERAGE.name: coverage}
        for metric, made, ceiling in zip(self.task.metrics, compared, self.ceilings, strict=True):
            if self._asks(metric):
                bounded = bounded_values(metric, made, ceiling, share)
                values |= {titled(name, metric.proxy): value for name, value in bounded.items()}
        if source.clip is not None and system.name not in BUILT_IN:
            logged, wrong = read_log(log_path(source.clip.path))
            values |= logged
            note = "; ".join(part for part in (note, wrong) if part)
        return PairScore(values, statuses, note, seconds, place_of(source.clip)), keys

    def _features(self, source: Source, found: _Lazy, statuses: Sequence[str]) -> tuple[list[Features], dict[int, str]]:
        """Features by measure, and the keys of those that are kept; of a distance between sets, its own."""
        absent, apart = bool(set(statuses) & ABSENT), bool(source.whole) or SHORT in statuses
        features: list[Features] = []
        keys: dict[int, str] = {}
        for index, metric in enumerate(self.task.metrics):
            made: Features = {}
            if self._asks(metric) and not absent:
                made, keys[index] = self._kept(index, source.key, partial(self._read, metric, found))
                if metric.compares_sets and apart:
                    key = f"{source.key}, as a set {source.whole}"
                    _, keys[index] = self._kept(index, key, partial(self._read_whole, metric, found))
            elif self._asks(metric) and metric.compares_sets:
                made, keys[index] = self._kept(index, "absent", partial(metric.absent, self.true[index]))
            features.append(made)
        return features, keys

    def _compared(self, features: Sequence[Features]) -> list[dict[str, float]]:
        """What each measure says of some features, beside the truth's."""
        rows = zip(self.task.metrics, features, self.true, self.reference, strict=True)
        return [m.compare(made, true, ref, self.pair) if self._asks(m) else {} for m, made, true, ref in rows]

    def _asks(self, metric: Metric) -> bool:
        """Whether the measure can be taken of this pair at all."""
        return not metric.lacks(self.pair, self.listens)

    def _read(self, metric: Metric, found: _Lazy) -> Features:
        return metric.read(found().media, self.truth if metric.beside else None)

    def _read_whole(self, metric: Metric, found: _Lazy) -> Features:
        return metric.read(found().whole)

    def _kept(self, index: int, source: str, read: Callable[[], Features]) -> tuple[Features, str]:
        key = fingerprint(self.task.specs[index], source, self.truth_key)
        features = self.store.load(key)
        if features is None:
            features = read()
            self.store.save(key, features)
        return features, key

    def _facts(self, source: Source, found: Callable[[], Found]) -> tuple[tuple[str, ...], str, float, float]:
        """What was wrong with a clip, which is kept beside its features."""
        key = fingerprint("facts", source.key, self.truth_key, f"listens {self.listens}")
        if (kept := self.store.load(key)) is None:
            seen = found().listening() if self.listens else found()
            kept = {"statuses": np.array(seen.statuses), "note": np.array(seen.note)}
            kept |= {"seconds": np.array(seen.seconds), "coverage": np.array(seen.coverage)}
            self.store.save(key, kept)
        statuses = tuple(map(str, kept["statuses"]))
        return statuses, str(kept["note"]), float(kept["seconds"]), float(kept["coverage"])


def place_of(clip: Clip | None) -> dict[str, object] | None:
    return None if clip is None else {"path": str(clip.path), "start": clip.start, "end": clip.end}


class _Lazy:
    """A clip that is decoded at the first call."""

    def __init__(self, read: Callable[[], Found]) -> None:
        self.read = read
        self.found: Found | None = None

    def __call__(self) -> Found:
        if self.found is None:
            self.found = self.read()
        return self.found
