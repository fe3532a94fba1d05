"""Builds conditions from the `condition` node of a config or a release, in which each key names one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vidchat.conditions.base import Condition, ConditionError
from vidchat.registry import build, look_up

OTHER_KEYS = frozenset({"initiator", "max_turn_chunks", "drop"})
"""Keys of the node that are not conditions: whether the initiator is heard, and the dropout probability."""


def read_conditions(node: Mapping[str, Any], trust: Iterable[str] = ()) -> dict[str, Condition]:
    """Builds the conditions that a node enables, in the order of the node.

    A key is the name of a condition. Its value enables it: `true`, its first setting (`text: answer`), or its settings
    by name. A condition of another package gives its type: `head_pose: {type: mylab/head_pose}`. `null`, `false`, `0`
    and an empty list disable a condition.

    Args:
        node: The `condition` node.
        trust: Other packages whose conditions may be built.

    Raises:
        ConditionError: A setting is invalid, or a key names something that is not a condition.
        UnknownName, WrongArguments: See `vidchat.registry`.
    """
    return {
        key: _condition(key, value, trust)
        for key, value in node.items()
        if key not in OTHER_KEYS and (value or isinstance(value, Mapping))
    }


def _condition(key: str, value: Any, trust: Iterable[str]) -> Condition:
    named = {"type": key, **value} if isinstance(value, Mapping) else {"type": key}
    kind: Any = look_up(str(named["type"]), trust)
    if not _is_condition(kind):
        raise ConditionError(
            f"condition.{key}: {named['type']} is not a condition; docs/own-condition.md explains how to write one"
        )
    if isinstance(value, Mapping):
        built: Condition = build(named, trust)
        return built
    try:
        return kind() if value is True else kind(value)
    except TypeError as error:
        raise ConditionError(f"condition.{key} cannot be {str(value)[:80]}: {error}") from error


def _is_condition(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Condition)
