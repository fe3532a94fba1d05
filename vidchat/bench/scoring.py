"""Pairs and systems to numbers: every clip is decoded once for all measures, on several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from vidchat.bench.clips import ABSENT, RULE, Found, View, longest_truth, read_reference, read_truth, up_to
from vidchat.bench.intervals import FRECHET_RESAMPLES
from vidchat.bench.listening import is_listening
from vidchat.bench.measure import Features, Measure, bounded_values
from vidchat.bench.pairs import Pair, pairs_hash
from vidchat.bench.protocol import file_hash, protocol_string, text_hash
from vidchat.bench.responsiveness import log_path, read_log
from vidchat.bench.results import PairScore, Result
from vidchat.bench.store import Store, fingerprint
from vidchat.bench.summary import Scored, Summary
from vidchat.bench.systems import BUILT_IN, TRUTH, Folder, Source, System, built_in, clip_key
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
    build: Callable[[], Sequence[Measure]]
    view: View
    store: Path

    @cached_property
    def measures(self) -> Sequence[Measure]:
        return self.build()

    @cached_property
    def specs(self) -> Sequence[str]:
        """The measures' part of the protocol strings; made once, as weights are hashed for it."""
        return [protocol_string(measure.spec()) for measure in self.measures]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("measures", "specs")}


def score(
    pairs: Sequence[Pair],
    systems: Sequence[System],
    build: Callable[[], Sequence[Measure]],
    view: View,
    store: Path,
    *,
    protocol: str = "dyadic",
    workers: int = 1,
    resamples: int = FRECHET_RESAMPLES,
) -> Result:
    """Scores systems, and beside them the truth, a shuffled truth and a frozen reference.

    Args:
        pairs: What was asked.
        systems: Whose answers.
        build: Makes the measures; importable where `workers` > 1.
        view: How clips are decoded.
        store: Folder of features; what is in it already is not computed again.
        protocol: `conditioned` (the system is told the words) or `dyadic` (it has the initiator's clip).
        workers: Processes; the numbers do not depend on it.
        resamples: For the intervals of Fréchet distances.

    Raises:
        ValueError: Two systems have one name, or one that is built in.
        MediaError: A true answer, or a reference, cannot be read.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or set(names) & set(BUILT_IN):
        raise ValueError(f"systems need names of their own, and not one of {', '.join(BUILT_IN)}; got {names}")
    misnamed = [warning for system in systems if isinstance(system, Folder) for warning in system.warnings(pairs)]
    view = replace(view, longest=longest_truth(pairs))
    task = Task([*built_in(pairs), *systems], build, view, store)
    scored = _score_pairs(task, pairs, workers)
    summary = Summary(task.measures, task.specs, pairs, scored, Store(store), _prefix(protocol, pairs, view), resamples)
    return Result(
        protocol=protocol,
        pairs=[_told(pair) for pair in pairs],
        rule=RULE,
        systems=[summary.of(system.name) for system in task.systems],
        warnings=[*misnamed, *summary.warnings],
    )


def _prefix(protocol: str, pairs: Sequence[Pair], view: View) -> str:
    return f"protocol={protocol}; pairs={len(pairs)} {pairs_hash(pairs)}; {view}; bad clips={text_hash([RULE])}"


def _told(pair: Pair) -> dict[str, object]:
    return {
        "id": pair.id,
        "question": pair.initiator.text or "",
        "answer": pair.truth.text or "",
        "initiator": _place(pair.initiator),
        "reference": str(pair.reference),
        "candidates": [{"text": c.text, "worth": c.worth} for c in pair.candidates],
    }


def _score_pairs(task: Task, pairs: Sequence[Pair], workers: int) -> list[Scored]:
    if workers <= 1 or len(pairs) < 2:
        return [score_pair(task, pair) for pair in track(pairs, "scoring")]
    # Spawned, not forked: a fork of a process that has used PyAV or torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(task,)) as pool:
        return list(track(pool.map(_work, pairs), "scoring", total=len(pairs)))


_task: Task | None = None


def _start(task: Task) -> None:
    global _task
    torch.set_num_threads(1)
    _task = task


def _work(pair: Pair) -> Scored:
    assert _task is not None
    return score_pair(_task, pair)


def score_pair(task: Task, pair: Pair) -> Scored:
    """Every system's answer to one pair."""
    desk = _Desk(task, pair)
    return {system.name: desk.score(system) for system in task.systems}


class _Desk:
    """One pair on the desk: clips are decoded when first needed, and at most once."""

    def __init__(self, task: Task, pair: Pair) -> None:
        self.task, self.pair, self.store = task, pair, Store(task.store)
        self.truth_key = f"{clip_key(pair.truth)} {task.view}"
        self.true: list[Features] = []
        self.ceilings: list[dict[str, float]] = []

    @cached_property
    def truth(self) -> Media:
        return read_truth(self.pair, self.task.view)

    @cached_property
    def listens(self) -> bool:
        """Whether the true answer listens and says nothing; kept, so that a second run decodes nothing."""
        key = fingerprint("listens", self.pair.branch, str(self.pair.truth.text), self.truth_key)
        if (kept := self.store.load(key)) is None:
            kept = {"listens": np.array(is_listening(self.pair, self.truth))}
            self.store.save(key, kept)
        return bool(kept["listens"])

    @cached_property
    def reference(self) -> list[Features]:
        media = read_reference(self.pair, self.task.view)
        key = f"reference {file_hash(self.pair.reference)} {self.task.view}"
        return [
            self._kept(index, key, partial(measure.read, media))[0] if measure.needs_reference else {}
            for index, measure in enumerate(self.task.measures)
        ]

    def score(self, system: System) -> tuple[PairScore, dict[int, str]]:
        source = system.source(self.pair)
        found = _Lazy(lambda: system.read(self.pair, source, self.truth, self.task.view))
        statuses, note, seconds = self._facts(source, found)
        absent = bool(set(statuses) & ABSENT)
        features, keys = self._features(source, found, absent)
        if system.name == TRUTH:
            self.true = features
            self.ceilings = self._compared(features)
        compared = [{} for _ in features] if absent else self._compared(features)
        values: dict[str, float] = {}
        for measure, made, ceiling in zip(self.task.measures, compared, self.ceilings, strict=True):
            if self._asks(measure):
                values |= bounded_values(measure, made, ceiling)
        if source.clip is not None and system.name not in BUILT_IN:
            logged, wrong = read_log(log_path(source.clip.path))
            values |= logged
            note = "; ".join(part for part in (note, wrong) if part)
        return PairScore(values, statuses, note, seconds, _place(source.clip)), keys

    def _features(self, source: Source, found: _Lazy, absent: bool) -> tuple[list[Features], dict[int, str]]:
        """Features by measure, and the keys of those that are kept."""
        features: list[Features] = []
        keys: dict[int, str] = {}
        for index, measure in enumerate(self.task.measures):
            made: Features = {}
            if self._asks(measure) and not absent:
                made, keys[index] = self._kept(index, self._key(measure, source), partial(self._read, measure, found))
            elif self._asks(measure) and measure.compares_sets:
                made, keys[index] = self._kept(index, "absent", partial(measure.absent, self.true[index]))
            features.append(made)
        return features, keys

    def _compared(self, features: Sequence[Features]) -> list[dict[str, float]]:
        """What each measure says of some features, beside the truth's."""
        rows = zip(self.task.measures, features, self.true, self.reference, strict=True)
        return [m.compare(made, true, ref, self.pair) if self._asks(m) else {} for m, made, true, ref in rows]

    def _asks(self, measure: Measure) -> bool:
        """Whether the measure can be taken of this pair at all."""
        return not measure.lacks(self.pair, self.listens)

    def _read(self, measure: Measure, found: _Lazy) -> Features:
        media = up_to(found().whole, self.task.view.longest) if measure.compares_sets else found().media
        return measure.read(media, self.truth if measure.beside else None)

    def _key(self, measure: Measure, source: Source) -> str:
        return f"{source.key} to {self.task.view.longest:g} s" if measure.compares_sets else source.key

    def _kept(self, index: int, source: str, read: Callable[[], Features]) -> tuple[Features, str]:
        key = fingerprint(self.task.specs[index], source, self.truth_key)
        features = self.store.load(key)
        if features is None:
            features = read()
            self.store.save(key, features)
        return features, key

    def _facts(self, source: Source, found: Callable[[], Found]) -> tuple[tuple[str, ...], str, float]:
        """What was wrong with a clip, which is kept beside its features."""
        key = fingerprint("facts", RULE, source.key, self.truth_key, f"listens {self.listens}")
        if (kept := self.store.load(key)) is None:
            seen = found().listening() if self.listens else found()
            kept = {"statuses": np.array(seen.statuses), "note": np.array(seen.note), "seconds": np.array(seen.seconds)}
            self.store.save(key, kept)
        return tuple(map(str, kept["statuses"])), str(kept["note"]), float(kept["seconds"])


def _place(clip: Clip | None) -> dict[str, object] | None:
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
