"""From dialogues to the samples that can be drawn, and the order in which they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vidchat.data.index import Columns
from vidchat.data.loading.dialogues import ranges
from vidchat.data.loading.order import Order, Stream
from vidchat.data.loading.sample_index import COLUMNS, SampleIndex
from vidchat.data.loading.segment_table import BLOCK, SegmentTable
from vidchat.data.report import Report
from vidchat.data.tokens.provenance import CacheError

LARGEST_SCORE = 1e6  # one that is larger would leave nothing of the others when they are standardised
SCORES = f"a score of the responder is infinite or beyond {LARGEST_SCORE:g}; mend it in the manifest, or take it out"
SHAPES = "its turns are not of one shape; give them the same orientation"


class SourceRows(NamedTuple):
    """The dialogues that one source of a mix draws from: their (n,) rows, and the segments of their folder."""

    rows: np.ndarray
    table: SegmentTable


def gather(sources: Sequence[SourceRows], report: Report) -> SampleIndex:
    """Lists the samples whose segments are all encoded, in the order of the sources and their manifests.

    It does not check whether clips have changed since they were encoded: `prepare_data` has done so.

    Args:
        sources: What each source draws from.
        report: The report that counts the samples, and names the dialogues that have none.

    Raises:
        CacheError: A segment was never encoded.
    """
    blocks, people = list[Columns](), 0
    for number, (rows, table) in enumerate(sources):
        person = None
        if table.selection.voice:  # the same name in another set may be another person
            person = people + np.unique(table.dialogues.person[rows], return_inverse=True)[1]
            people = person.max(initial=people - 1) + 1
        for first in range(0, len(rows), BLOCK):
            some = slice(first, first + BLOCK)
            blocks.append(_gather_block(table, number, rows[some], None if person is None else person[some], report))
    samples = SampleIndex([source.table for source in sources], blocks)
    report.read += len(samples)
    return samples


def _gather_block(
    table: SegmentTable, source: int, rows: np.ndarray, person: np.ndarray | None, report: Report
) -> Columns:
    """Returns the columns of the samples of some dialogues; reports those that have none."""
    dialogues = table.dialogues
    doubtful = rows[~table.encoded(rows, check_clips=False)].tolist()
    why = {row: reason for row in doubtful if (reason := _why_unusable(table, row)) is not None}
    answers, owner = table.answers(rows)
    absurd = (np.abs(dialogues.scores(answers, table.selection.scores)) > LARGEST_SCORE).any(1)
    why |= {row: SCORES for row in rows[owner[absurd]].tolist() if row not in why}
    usable = ~np.isin(rows, np.fromiter(why, np.int64, len(why)))
    columns = _samples(table, source, rows[usable], None if person is None else person[usable])
    fitting = np.isin(rows, columns["row"], kind="table")
    why |= dict.fromkeys(rows[usable & ~fitting].tolist(), SHAPES)
    report.skipped += [(f"dialogue {dialogues[row].id}", why[row]) for row in sorted(why)]
    return columns


def _why_unusable(table: SegmentTable, row: int) -> str | None:
    """Says why a dialogue that is not encoded cannot be used; `None` if it can, its clips having changed since.

    Raises `CacheError`.
    """
    dialogue = table.dialogues[row]
    states = [table.cache.lookup(segment) for segment in table.selection.segments(dialogue)]
    why = next((state.bad for state in states if state.bad is not None), None)
    if why is None and any(state.missing for state in states):
        root = table.dialogues.root
        raise CacheError(f"dialogue {dialogue.id} of {root} is not encoded; call prepare_data() first")
    return why


def _samples(table: SegmentTable, source: int, rows: np.ndarray, person: np.ndarray | None) -> Columns:
    """Returns the columns of the samples of n encoded dialogues: none where turns to lay out together differ in shape.

    A dialogue is one sample, or has one for each span of each turn of the responder.
    """
    index, index_rows = table.cache.tracks["latents"].index, table.index_rows("latents")
    answer, answer_owner = table.answers(rows)
    first, spans = index.spans(index_rows[answer])
    turn, owner = (np.repeat(column, spans) for column in (answer, answer_owner))
    span, shape = ranges(np.zeros_like(first), spans), index.shapes(ranges(first, spans))
    whole = table.whole(rows)[owner]
    said, heard, alike = (column[owner] for column in _together(table, rows))
    said = np.where(whole, said, np.minimum(shape[:, 0], table.selection.max_chunks + 1))
    columns = {"source": np.full(len(owner), source), "row": rows[owner], "turn": turn, "span": span}
    columns |= {"lengths": np.stack([said, heard], axis=1), "grid": shape[:, -2] << 16 | shape[:, -1]}
    columns |= {} if person is None else {"person": person[owner]}
    return {name: column[alike | ~whole].astype(COLUMNS[name]) for name, column in columns.items()}


def _together(table: SegmentTable, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (n,) about how many columns n dialogues have, said and heard, and (n,) whether all are of one shape."""
    index, selection, count = table.cache.tracks["latents"].index, table.selection, len(rows)
    turn, owner = table.turns(rows)
    shape, said = index.shapes(index.spans(table.index_rows("latents")[turn])[0]), table.speaks(turn)
    chunks = np.minimum(shape[:, 0] - 1, np.where(said, selection.limit("responder"), selection.limit("initiator")))
    lengths = [np.bincount(owner, mine * (chunks + said), count).astype(np.int64) for mine in (said, ~said)]
    if selection.max_steps is not None:
        lengths = [np.minimum(length, selection.max_steps) for length in lengths]
    grid, expected = shape[:, -2] << 16 | shape[:, -1], np.zeros(count, np.int64)
    expected[owner] = grid
    alike = np.ones(count, bool)
    alike[owner[expected[owner] != grid]] = False
    return lengths[0], lengths[1], alike


def order_of(samples: SampleIndex, weights: Sequence[float], seed: int) -> Order:
    """Returns the endless order of samples: sources by weight, those of one shape in a batch, like lengths together."""
    groups: list[list[Stream]] = []
    for shape, grid in enumerate(samples.grids):
        group = []
        for source in np.unique(samples.sources[samples.shapes == shape]).tolist():
            of_source = samples.sources == source
            mine = np.flatnonzero((samples.shapes == shape) & of_source).astype(np.int32)
            name = "" if len(mine) == len(samples) else f"source {source} of {grid[0]}x{grid[1]}"
            weight = weights[source] * len(mine) / int(of_source.sum())
            group.append(Stream(name, range(len(samples)) if not name else mine, weight))
        groups.append(group)
    return Order(seed, groups, samples.lengths)


def standardisation(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean and standard deviation of a score over the samples that have it; 0 and 1 if none has it.

    Args:
        values: (n,) the score of each sample, NaN where it has none.
    """
    known = torch.from_numpy(values[~np.isnan(values)]).float()
    if not len(known):
        return 0.0, 1.0
    mean, std = float(known.mean()), float(known.std(correction=0))
    return mean, std if std > 0 else 1.0
