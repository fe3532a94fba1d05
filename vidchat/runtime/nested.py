"""Nested mappings, such as configs, compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differing_leaves(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns (dotted key, first value, second value) where two mappings differ, sorted; `None` for a missing value."""
    before, after = dict(leaves(first)), dict(leaves(second))
    keys = sorted(before.keys() | after.keys())
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for each value below `key` that is not a mapping."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
