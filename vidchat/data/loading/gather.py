"""From dialogues to the answers that can be drawn, and the order in which they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vidchat.data.loading.dialogues import ranges
from vidchat.data.loading.items import NOBODY, Items
from vidchat.data.loading.order import Order, Stream
from vidchat.data.loading.pieces import BLOCK, Pieces
from vidchat.data.loading.selection import Selection
from vidchat.data.report import Report
from vidchat.data.tokens.provenance import CacheError

LARGEST_SCORE = 1e6  # one that is larger would leave nothing of the others when they are standardised
SCORES = f"a score of its answer is infinite or beyond {LARGEST_SCORE:g}; mend it in the manifest, or take it out"
SHAPES = "its turns and its answer are not of one shape; give them the same orientation"


@dataclass(frozen=True)
class Stock:
    """What one source of a mix draws from.

    Attributes:
        rows: (n,) the dialogues that the source takes.
        pieces: The pieces of its folder's dialogues.
    """

    rows: np.ndarray
    segments: Pieces


def gather(stocks: Sequence[Stock], conditions: Selection, report: Report) -> Items:
    """The answers whose clips are all encoded, in the sources' and manifests' order.

    Whether clips have changed since they were encoded is not looked at: `prepare_data` has seen to that.

    Args:
        stocks: What each source draws from.
        conditions: What answers are made from.
        report: Where the answers are counted, and dialogues named that have none.

    Raises:
        CacheError: A clip was never encoded.
    """
    found, people = list[dict[str, Any]](), 0
    for source, stock in enumerate(stocks):
        dialogues, segments = stock.segments.dialogues, stock.segments
        person = np.full(len(stock.rows), NOBODY)
        if conditions.voice:  # the same name in another set may be another person
            person = people + np.unique(dialogues.person[stock.rows], return_inverse=True)[1]
            people = person.max(initial=people - 1) + 1
        for first in range(0, len(stock.rows), BLOCK):
            rows = stock.rows[first : first + BLOCK]
            doubtful = rows[~segments.encoded(rows, look=False)].tolist()
            why = {row: told for row in doubtful if (told := _why_not(segments, row)) is not None}
            absurd = (np.abs(dialogues.scores(rows, conditions.scores)) > LARGEST_SCORE).any(1)
            why |= {row: SCORES for row in rows[absurd].tolist() if row not in why}
            kept = ~np.isin(rows, np.fromiter(why, np.int64, len(why)))
            if kept.any():
                answers = _answers(segments, source, rows[kept], person[first : first + BLOCK][kept])
                found.append(answers)
                none = ~np.isin(rows, answers["row"], kind="table")
                why |= dict.fromkeys(rows[kept & none].tolist(), SHAPES)
            report.skipped += [(f"dialogue {dialogues[row].id}", why[row]) for row in sorted(why)]
    items = Items([stock.segments for stock in stocks], found)
    report.read += len(items)
    return items


def _why_not(segments: Pieces, row: int) -> str | None:
    """Why a dialogue cannot be used that is not encoded; `None` if it can, its clips having changed since.

    Raises `CacheError`.
    """
    dialogue = segments.dialogues[row]
    looks = [segments.cache.look(segment) for segment in segments.conditions.segments(dialogue)]
    why = next((look.bad for look in looks if look.bad is not None), None)
    if why is None and any(look.missing for look in looks):
        root = segments.dialogues.root
        raise CacheError(f"dialogue {dialogue.id} of {root} is not encoded; call prepare_data() first")
    return why


def _answers(segments: Pieces, source: int, rows: np.ndarray, person: np.ndarray) -> dict[str, Any]:
    """The columns of `Items` for n dialogues that are encoded: no item if shapes differ, several if it is single."""
    index, places, conditions = segments.cache.tracks["latents"].index, segments.places("latents"), segments.conditions
    sample, spans = index.spans(places[segments.answers(rows)])
    shape = index.shapes(ranges(sample, spans))
    owner, span = np.repeat(np.arange(len(rows)), spans), ranges(np.zeros_like(sample), spans)

    turn, turn_owner = segments.turns(rows)
    turn_shape = index.shapes(index.spans(places[turn])[0])
    chunks = np.minimum(turn_shape[:, 0] - 1, conditions.turn_chunks)
    turn_length = np.bincount(turn_owner, chunks, len(rows)).astype(np.int64)
    # Turns are of an answer's shape if the least and the greatest of them are, in height and in width.
    least, most = np.full((len(rows), 2), np.iinfo(np.int64).max), np.full((len(rows), 2), -1)
    np.minimum.at(least, turn_owner, turn_shape[:, -2:])
    np.maximum.at(most, turn_owner, turn_shape[:, -2:])
    grid = shape[:, -2:]
    fits = (most[owner] < 0).all(1) | ((least[owner] == grid) & (most[owner] == grid)).all(1)
    owner, span, shape = owner[fits], span[fits], shape[fits]
    length = np.minimum(shape[:, 0] - 1, conditions.max_chunks)
    columns = {"row": rows[owner], "span": span, "length": length, "turn_length": turn_length[owner]}
    return columns | {"source": source, "grid": shape[:, -2:], "person": person[owner]}


def order_of(items: Items, weights: Sequence[float], seed: int) -> Order:
    """The endless order of items: sources by weight, those of one shape in a batch, of like length together."""
    groups: list[list[Stream]] = []
    for shape, grid in enumerate(sorted(items.grids)):
        group = []
        for source in np.unique(items.sources[items.shapes == shape]).tolist():
            mine = np.flatnonzero((items.shapes == shape) & (items.sources == source)).astype(np.int32)
            name = "" if len(mine) == len(items) else f"source {source} of {grid[0]}x{grid[1]}"
            weight = weights[source] * len(mine) / int((items.sources == source).sum())
            group.append(Stream(name, mine, weight))
        groups.append(group)
    return Order(seed, groups, items.lengths)


def standardisation(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of a score over the items that have it; (0, 1) where it says nothing.

    Args:
        values: (n,) of each item, NaN where it has none.
    """
    known = torch.from_numpy(values[~np.isnan(values)]).float()
    if not len(known):
        return 0.0, 1.0
    mean, std = float(known.mean()), float(known.std(correction=0))
    return mean, std if std > 0 else 1.0
