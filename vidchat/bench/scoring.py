"""Scores systems on all pairs, on several processes."""

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
from vidchat.bench.pair_scorer import Task, clip_entry, score_pair
from vidchat.bench.pairs import Pair, pair_hash, pairs_hash
from vidchat.bench.processes import call_or_recover, error_note, in_processes
from vidchat.bench.protocol import text_hash
from vidchat.bench.results import NOT_SCORED, PairScore, Result, SystemResult
from vidchat.bench.summary import Scored, Summary
from vidchat.bench.systems import BUILT_IN, TRUTH, Folder, System, built_in
from vidchat.bench.truth_sizes import truth_sizes
from vidchat.runtime.sizes import format_size


class ScoreError(ValueError):
    """Error about a benchmark of which no pair can be scored; its message is one sentence."""


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
        pairs: Pairs of the benchmark.
        systems: Systems to score.
        build: Function that builds the metrics; importable if `workers` > 1.
        view: Format of decoded clips.
        store: Folder of the feature cache.
        protocol: Input of the systems, `conditioned` (the words to say) or `dyadic` (the initiator's clip alone).
        workers: Number of processes; the numbers do not depend on it.
        resamples: Number of resamples for the intervals of Fréchet distances.

    Raises:
        ValueError: Two systems have the same name, or one has the name of a built-in system.
        ScoreError: No pair could be scored.
        BackendError: The weights do not fit.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or set(names) & set(BUILT_IN):
        raise ValueError(f"systems need names of their own, and not one of {', '.join(BUILT_IN)}; got {names}")
    folders = [system for system in systems if isinstance(system, Folder)]
    misnamed = [warning for folder in folders for warning in folder.warnings(pairs, protocol)]
    scored_systems = [
        system.assign_spans(pairs, view.fps) if isinstance(system, Folder) else system for system in systems
    ]
    task = Task([*built_in(pairs), *scored_systems], build, view, store)
    specs = task.specs  # computed first, so that wrong weights are reported before the long work
    scored = _score_pairs(task, pairs, workers)
    truths = [scores[TRUTH][0] for scores in scored]
    bad = [truth.note for truth in truths if truth.statuses == NOT_SCORED]
    if len(bad) == len(pairs):
        raise ScoreError(f"none of the {len(pairs)} pairs could be scored; the first: {pairs[0].id}: {bad[0]}")
    summary = Summary(
        task.metrics, specs, pairs, scored, FeatureCache(store), _prefix(protocol, pairs, view), resamples
    )
    results = [summary.system_result(system.name) for system in task.systems]
    return Result(
        protocol=protocol,
        pairs=[_pair_entry(pair) for pair in pairs],
        rule=RULE,
        systems=results,
        warnings=[*_left_out_warnings(results[0]), *_size_warnings(pairs, view), *misnamed, *summary.warnings],
    )


def _prefix(protocol: str, pairs: Sequence[Pair], view: View) -> str:
    return (
        f"protocol={protocol}; pairs={len(pairs)} {pairs_hash(pairs)}; answer={pairs[0].answer_seconds} s; {view}; "
        f"rules={text_hash([RULE])}"
    )


def _left_out_warnings(truth: SystemResult) -> list[str]:
    """Returns a warning that names the pairs that could not be scored for any system, and why."""
    left = {name: score.note for name, score in truth.scores.items() if score.statuses == NOT_SCORED}
    reasons = "; ".join(f"{name}: {note}" for name, note in left.items())
    return [f"{len(left)} of {len(truth.scores)} pairs are left out for all systems ({reasons})"] if left else []


def _size_warnings(pairs: Sequence[Pair], view: View) -> list[str]:
    """Returns a warning if the true answers have several sizes, since then some are cropped and others are not."""
    sizes = truth_sizes(pairs)
    if len(sizes) < 2:
        return []
    counts = ", ".join(f"{len(ids)} of {format_size(size)}" for size, ids in sizes.items())
    return [f"the true answers have several sizes ({counts}); all are scaled and cropped to {format_size(view.size)}"]


def _pair_entry(pair: Pair) -> dict[str, object]:
    return {
        "id": pair.id,
        "hash": pair_hash(pair),
        "question": pair.initiator.text or "",
        "answer": pair.truth.text or "",
        "initiator": clip_entry(pair.initiator),
        "reference": str(pair.reference),
        "candidates": [{"text": c.text, "worth": c.score} for c in pair.candidates],
    }


def _score_pairs(task: Task, pairs: Sequence[Pair], workers: int) -> list[Scored]:
    """Scores all pairs; a pair whose truth cannot be scored has a reason and no values."""
    results: Iterable[tuple[Pair, Callable[[], Scored]]]
    if workers <= 1 or len(pairs) < 2:
        results = ((pair, partial(score_pair, task, pair)) for pair in pairs)
    else:
        results = in_processes(_work, pairs, workers, _start, (task,))
    scoring = track(results, "scoring", total=len(pairs))
    return [call_or_recover(result, partial(_without_scores, task, pair)) for pair, result in scoring]


def _without_scores(task: Task, pair: Pair, error: Exception) -> Scored:
    note = error_note(error, pair.truth.path, pair.reference)
    return {system.name: (PairScore({}, NOT_SCORED, note, 0.0, None), {}) for system in task.systems}


_task: Task | None = None


def _start(task: Task) -> None:
    global _task
    torch.set_num_threads(1)
    _task = task


def _work(pair: Pair) -> Scored:
    assert _task is not None
    return score_pair(_task, pair)
