"""Pairs and systems to numbers: every clip is decoded once for all measures, on several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import track

from vidchat.bench.clips import RULE, View
from vidchat.bench.feature_cache import FeatureCache
from vidchat.bench.intervals import FRECHET_RESAMPLES
from vidchat.bench.metric import Metric
from vidchat.bench.pair_scorer import Task, place_of, score_pair
from vidchat.bench.pairs import Pair, pair_hash, pairs_hash
from vidchat.bench.processes import as_note, guarded, in_processes
from vidchat.bench.protocol import text_hash
from vidchat.bench.results import NOT_SCORED, PairScore, Result, SystemResult
from vidchat.bench.sizes import sizes_of
from vidchat.bench.summary import Scored, Summary
from vidchat.bench.systems import BUILT_IN, TRUTH, Folder, System, built_in
from vidchat.runtime.sizes import format_size


class ScoreError(ValueError):
    """A benchmark of which not one pair can be scored, in one sentence."""


def score(
    pairs: Sequence[Pair],
    systems: Sequence[System],
    build: Callable[[], Sequence[Metric]],
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
        ScoreError: Not one pair could be scored.
        BackendError: The weights do not fit.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or set(names) & set(BUILT_IN):
        raise ValueError(f"systems need names of their own, and not one of {', '.join(BUILT_IN)}; got {names}")
    folders = [system for system in systems if isinstance(system, Folder)]
    misnamed = [warning for folder in folders for warning in folder.warnings(pairs, protocol)]
    asked = [one.assign_spans(pairs, view.fps) if isinstance(one, Folder) else one for one in systems]
    task = Task([*built_in(pairs), *asked], build, view, store)
    specs = task.specs  # made first, so that weights that do not fit are told before the long work
    scored = _score_pairs(task, pairs, workers)
    bad = [one[TRUTH][0].note for one in scored if one[TRUTH][0].statuses == NOT_SCORED]
    if len(bad) == len(pairs):
        raise ScoreError(f"none of the {len(pairs)} pairs could be scored; the first: {pairs[0].id}: {bad[0]}")
    summary = Summary(
        task.metrics, specs, pairs, scored, FeatureCache(store), _prefix(protocol, pairs, view), resamples
    )
    results = [summary.of(system.name) for system in task.systems]
    return Result(
        protocol=protocol,
        pairs=[_told(pair) for pair in pairs],
        rule=RULE,
        systems=results,
        warnings=[*_left_out(results[0]), *_other_sizes(pairs, view), *misnamed, *summary.warnings],
    )


def _prefix(protocol: str, pairs: Sequence[Pair], view: View) -> str:
    return (
        f"protocol={protocol}; pairs={len(pairs)} {pairs_hash(pairs)}; answer={pairs[0].answer_seconds} s; {view}; "
        f"rules={text_hash([RULE])}"
    )


def _left_out(truth: SystemResult) -> list[str]:
    """Which pairs no system could be scored on, and why."""
    left = {name: score.note for name, score in truth.scores.items() if score.statuses == NOT_SCORED}
    reasons = "; ".join(f"{name}: {note}" for name, note in left.items())
    return [f"{len(left)} of {len(truth.scores)} pairs are left out for all systems ({reasons})"] if left else []


def _other_sizes(pairs: Sequence[Pair], view: View) -> list[str]:
    """Whether the true answers' frames are not all alike, so that some are cropped where others are not."""
    sizes = sizes_of(pairs)
    if len(sizes) < 2:
        return []
    counts = ", ".join(f"{len(ids)} of {format_size(size)}" for size, ids in sizes.items())
    return [f"the true answers have several sizes ({counts}); all are scaled and cropped to {format_size(view.size)}"]


def _told(pair: Pair) -> dict[str, object]:
    return {
        "id": pair.id,
        "hash": pair_hash(pair),
        "question": pair.initiator.text or "",
        "answer": pair.truth.text or "",
        "initiator": place_of(pair.initiator),
        "reference": str(pair.reference),
        "candidates": [{"text": c.text, "worth": c.worth} for c in pair.candidates],
    }


def _score_pairs(task: Task, pairs: Sequence[Pair], workers: int) -> list[Scored]:
    """Every pair's scores; a pair whose truth cannot be scored has none, and a reason."""
    results: Iterable[tuple[Pair, Callable[[], Scored]]]
    if workers <= 1 or len(pairs) < 2:
        results = ((pair, partial(score_pair, task, pair)) for pair in pairs)
    else:
        results = in_processes(_work, pairs, workers, _start, (task,))
    scoring = track(results, "scoring", total=len(pairs))
    return [guarded(result, partial(_without_scores, task, pair)) for pair, result in scoring]


def _without_scores(task: Task, pair: Pair, error: Exception) -> Scored:
    note = as_note(error, pair.truth.path, pair.reference)
    return {system.name: (PairScore({}, NOT_SCORED, note, 0.0, None), {}) for system in task.systems}


_task: Task | None = None


def _start(task: Task) -> None:
    global _task
    torch.set_num_threads(1)
    _task = task


def _work(pair: Pair) -> Scored:
    assert _task is not None
    return score_pair(_task, pair)
