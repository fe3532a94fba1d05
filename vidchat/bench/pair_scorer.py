"""Scores the clips of all systems for one pair; every clip is decoded once for all metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from vidchat.bench.clips import ABSENT, RULE, SHORT, ScoredClip, View, read_reference, read_truth, unscored
from vidchat.bench.feature_cache import FeatureCache, fingerprint
from vidchat.bench.listening_metric import is_listening
from vidchat.bench.metric import Features, Metric, bounded_values, column_title
from vidchat.bench.pairs import Pair
from vidchat.bench.processes import error_note, is_fatal
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
        systems: Systems, the truth first.
        build: Function that builds the metrics; each process calls it once, since backends cannot be pickled.
        view: Format of decoded clips.
        store: Folder of the feature cache.
    """

    systems: Sequence[System]
    build: Callable[[], Sequence[Metric]]
    view: View
    store: Path

    @cached_property
    def metrics(self) -> Sequence[Metric]:
        """Builds the metrics at the first call."""
        return self.build()

    @cached_property
    def specs(self) -> Sequence[str]:
        """Returns the metrics' parts of the protocol strings; cached, since weights are hashed for it."""
        return [protocol_string(metric.spec()) for metric in self.metrics]

    def __getstate__(self) -> dict[str, object]:
        """Leaves out the metrics, whose backends cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name not in ("metrics", "specs")}


def score_pair(task: Task, pair: Pair) -> Scored:
    """Scores every system's answer to one pair.

    Raises:
        MediaError: The true answer, or the reference if a metric needs it, cannot be read.
        BackendError: The weights do not fit.
    """
    scorer = PairScorer(task, pair)
    return {system.name: scorer.score(system) for system in task.systems}


class PairScorer:
    """Scores one pair; each clip is decoded when it is first needed, and at most once."""

    def __init__(self, task: Task, pair: Pair) -> None:
        self.task, self.pair, self.store = task, pair, FeatureCache(task.store)
        self.truth_key = f"{clip_key(pair.truth)} {pair.answer_seconds!r} {task.view} {text_hash([RULE])}"
        self.truth_features: list[Features] = []
        self.ceilings: list[dict[str, float]] = []

    @cached_property
    def truth(self) -> Media:
        """Reads the scored span of the true answer at the first call."""
        return read_truth(self.pair, self.task.view)

    @cached_property
    def listens(self) -> bool:
        """Returns whether the true answer only listens; cached, so that a second run decodes nothing."""
        key = fingerprint("listens", self.pair.branch, repr(self.pair.truth.text), self.truth_key)
        if (cached := self.store.load(key)) is None:
            cached = {"listens": np.array(is_listening(self.pair, self.truth))}
            self.store.save(key, cached)
        return bool(cached["listens"])

    @cached_property
    def reference(self) -> list[Features]:
        """Returns the features of the reference by metric; empty for metrics that do not need them."""
        media = read_reference(self.pair, self.task.view)
        key = f"reference {file_hash(self.pair.reference)} {self.task.view}"
        return [
            self._cached(index, key, partial(metric.read, media))[0] if metric.needs_reference else {}
            for index, metric in enumerate(self.task.metrics)
        ]

    def score(self, system: System) -> tuple[PairScore, dict[int, str]]:
        """Scores one system's answer; one on which a metric fails is scored like a missing answer.

        Raises:
            Exception: The true answer cannot be scored, or the error would affect all pairs.
        """
        source = Source(None, "missing")
        try:
            source = system.source(self.pair)
            return self._score_clip(system, source, lambda: system.read(self.pair, source, self.truth, self.task.view))
        except Exception as error:
            if system.name == TRUTH or is_fatal(error):
                raise
            note = error_note(error, *([source.clip.path] if source.clip else []))
        missing = Source(None, f"not scored {note}")
        empty = lambda: unscored("unreadable", note, len(self.truth.frames), self.task.view)  # noqa: E731
        return self._score_clip(system, missing, empty)

    def _score_clip(
        self, system: System, source: Source, read: Callable[[], ScoredClip]
    ) -> tuple[PairScore, dict[int, str]]:
        clip = _LazyClip(read)
        statuses, note, seconds, coverage = self._clip_facts(source, clip)
        absent = bool(set(statuses) & ABSENT)
        features, keys = self._features(source, clip, statuses)
        share = coverage if SHORT in statuses else 1.0
        if system.name == TRUTH:
            self.truth_features = features
            self.ceilings = self._compared(features)
        compared = [{} for _ in features] if absent else self._compared(features)
        values = {COVERAGE.name: coverage}
        for metric, generated, ceiling in zip(self.task.metrics, compared, self.ceilings, strict=True):
            if self._applies(metric):
                bounded = bounded_values(metric, generated, ceiling, share)
                values |= {column_title(name, metric.proxy): value for name, value in bounded.items()}
        if source.clip is not None and system.name not in BUILT_IN:
            logged, log_note = read_log(log_path(source.clip.path))
            values |= logged
            note = "; ".join(part for part in (note, log_note) if part)
        return PairScore(values, statuses, note, seconds, clip_entry(source.clip)), keys

    def _features(
        self, source: Source, clip: _LazyClip, statuses: Sequence[str]
    ) -> tuple[list[Features], dict[int, str]]:
        """Returns the features by metric, and their cache keys; a distance between sets may have a key of its own."""
        absent, own_set = bool(set(statuses) & ABSENT), bool(source.set_key) or SHORT in statuses
        features: list[Features] = []
        keys: dict[int, str] = {}
        for index, metric in enumerate(self.task.metrics):
            generated: Features = {}
            if self._applies(metric) and not absent:
                generated, keys[index] = self._cached(index, source.key, partial(self._read, metric, clip))
                if metric.compares_sets and own_set:
                    key = f"{source.key}, as a set {source.set_key}"
                    _, keys[index] = self._cached(index, key, partial(self._read_for_sets, metric, clip))
            elif self._applies(metric) and metric.compares_sets:
                generated, keys[index] = self._cached(
                    index, "absent", partial(metric.absent, self.truth_features[index])
                )
            features.append(generated)
        return features, keys

    def _compared(self, features: Sequence[Features]) -> list[dict[str, float]]:
        """Returns the values of each metric for some features, compared with the truth's."""
        rows = zip(self.task.metrics, features, self.truth_features, self.reference, strict=True)
        return [m.compare(own, truth, ref, self.pair) if self._applies(m) else {} for m, own, truth, ref in rows]

    def _applies(self, metric: Metric) -> bool:
        """Returns whether the metric can score this pair."""
        return not metric.missing_requirement(self.pair, self.listens)

    def _read(self, metric: Metric, clip: _LazyClip) -> Features:
        return metric.read(clip().media, self.truth if metric.needs_truth else None)

    def _read_for_sets(self, metric: Metric, clip: _LazyClip) -> Features:
        return metric.read(clip().media_for_sets)

    def _cached(self, index: int, source: str, read: Callable[[], Features]) -> tuple[Features, str]:
        key = fingerprint(self.task.specs[index], source, self.truth_key)
        features = self.store.load(key)
        if features is None:
            features = read()
            self.store.save(key, features)
        return features, key

    def _clip_facts(self, source: Source, clip: Callable[[], ScoredClip]) -> tuple[tuple[str, ...], str, float, float]:
        """Returns statuses, note, length in seconds and coverage of a clip, which are cached like features."""
        key = fingerprint("facts", source.key, self.truth_key, f"listens {self.listens}")
        if (cached := self.store.load(key)) is None:
            decoded = clip().listening() if self.listens else clip()
            cached = {"statuses": np.array(decoded.statuses), "note": np.array(decoded.note)}
            cached |= {"seconds": np.array(decoded.seconds), "coverage": np.array(decoded.coverage)}
            self.store.save(key, cached)
        statuses = tuple(map(str, cached["statuses"]))
        return statuses, str(cached["note"]), float(cached["seconds"]), float(cached["coverage"])


def clip_entry(clip: Clip | None) -> dict[str, object] | None:
    """Returns a clip as an entry of `scores.json`."""
    return None if clip is None else {"path": str(clip.path), "start": clip.start, "end": clip.end}


class _LazyClip:
    """A clip that is decoded at the first call."""

    def __init__(self, read: Callable[[], ScoredClip]) -> None:
        self.read = read
        self.clip: ScoredClip | None = None

    def __call__(self) -> ScoredClip:
        if self.clip is None:
            self.clip = self.read()
        return self.clip
