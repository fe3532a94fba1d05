"""Nested mappings, such as configs, compared leaf by leaf."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def differing_leaves(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The dotted keys, sorted, that two mappings hold with different values, and both values; `None` where lacking."""
    first, second = dict(leaves(one)), dict(leaves(other))
    keys = sorted(first.keys() | second.keys())
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below `key` that is no mapping."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node
