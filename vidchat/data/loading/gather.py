"""From dialogues to the answers that can be drawn, and the order in which they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vidchat.data.dialogue_table import DialogueTable
from vidchat.data.loading.conditions import Conditions
from vidchat.data.loading.items import Item, Items, TurnKey
from vidchat.data.loading.order import Order, Stream
from vidchat.data.report import Report
from vidchat.data.tokens.cache import Found, TokenCache
from vidchat.data.tokens.made_with import CacheError
from vidchat.dialogue import Dialogue


@dataclass(frozen=True)
class Stock:
    """What one source of a mix draws from.

    Attributes:
        root: Its folder.
        table: The folder's dialogues.
        rows: (n,) those that the source takes.
        cache: The folder's tokens.
    """

    root: Path
    table: DialogueTable
    rows: np.ndarray
    cache: TokenCache


def gather(stocks: Sequence[Stock], conditions: Conditions, report: Report) -> Items:
    """The answers whose clips are all encoded, in the sources' and manifests' order.

    Args:
        stocks: What each source draws from.
        conditions: What answers are made from.
        report: Where the answers are counted, and dialogues named that have none.

    Raises:
        CacheError: A clip was never encoded.
    """
    items = Items([stock.table for stock in stocks], conditions.scores, people=conditions.voice)
    for source, stock in enumerate(stocks):
        for row in stock.rows.tolist():
            dialogue = stock.table[row]
            looks = [stock.cache.look(piece) for piece in conditions.pieces(dialogue)]
            why = next((look.bad for look in looks if look.bad is not None), None)
            if why is None and any(look.missing for look in looks):
                raise CacheError(f"dialogue {dialogue.id} of {stock.root} is not encoded; call prepare_data() first")
            before = len(items)
            for item in () if why is not None else _answers(stock, source, row, dialogue, looks, conditions):
                items.add(item, dialogue)
            if len(items) == before:
                why = why or "its turns and its answer are not of one shape; give them the same orientation"
                report.skipped.append((f"dialogue {dialogue.id}", why))
    report.read += len(items)
    return items.finish()


def _answers(
    stock: Stock, source: int, row: int, dialogue: Dialogue, looks: list[Found], conditions: Conditions
) -> Iterator[Item]:
    """The answers of one dialogue: none if shapes differ, several if it is single."""
    keys, told = [look.key for look in looks], conditions.turns(dialogue)
    answer, question = keys[0], keys[-1] if conditions.features else None
    turns = tuple(TurnKey(piece.part, key, role) for (piece, role), key in zip(told, keys[1:], strict=False))
    shapes = [stock.cache.shapes(turn.key)[0] for turn in turns]
    length = sum(min(shape[0] - 1, conditions.turn_chunks) for shape in shapes)
    for span, shape in enumerate(stock.cache.shapes(answer)):
        grid = shape[-2], shape[-1]
        if all((one[-2], one[-1]) == grid for one in shapes):
            lengths = min(shape[0] - 1, conditions.max_chunks), length
            yield Item(stock.table, row, source, answer, span, turns, question, lengths, grid)


def order_of(items: Items, weights: Sequence[float], seed: int) -> Order:
    """The endless order of items: sources by weight, those of one shape in a batch, of like length together."""
    groups: list[list[Stream]] = []
    for shape, grid in enumerate(sorted(items.grids)):
        group = []
        for source in np.unique(items.sources[items.shapes == shape]).tolist():
            mine = np.flatnonzero((items.shapes == shape) & (items.sources == source))
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
