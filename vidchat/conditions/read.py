"""From the `condition` node of a config, or of a release, to conditions: each key names one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vidchat.conditions.base import Condition, ConditionError
from vidchat.registry import build, look_up

NO_CONDITIONS = frozenset({"initiator", "earlier_turns", "max_turn_chunks", "drop"})
"""Keys beside the conditions: what is heard of the dialogue, and how often all is hidden."""


def read_conditions(node: Mapping[str, Any], trust: Iterable[str] = ()) -> dict[str, Condition]:
    """Builds the conditions that a node switches on, in its order.

    A key is a condition's name. Its value switches it on: `true`, its first setting (`text: answer`), or its settings
    by name. One of another package says which it is: `head_pose: {type: mylab/head_pose}`. `null`, `false`, `0` and an
    empty list switch it off.

    Args:
        node: The node, of names.
        trust: Packages beside this one whose conditions it may have.

    Raises:
        ConditionError: a setting cannot be, or a key names something else.
        UnknownName, WrongArguments: see `vidchat.registry`.
    """
    return {
        key: _condition(key, value, trust)
        for key, value in _with_voice_chunks(node).items()
        if key not in NO_CONDITIONS and (value or isinstance(value, Mapping))
    }


def _with_voice_chunks(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node with `voice_chunks`, a key of its own before conditions had settings, where it belongs."""
    given = dict(node)
    chunks = given.pop("voice_chunks", None)
    if chunks is not None and given.get("voice") is True:
        given["voice"] = chunks
    return given


def _condition(key: str, value: Any, trust: Iterable[str]) -> Condition:
    named = {"type": key, **value} if isinstance(value, Mapping) else {"type": key}
    kind: Any = look_up(str(named["type"]), trust)
    if not _is_condition(kind):
        raise ConditionError(
            f"condition.{key}: {named['type']} is no condition; docs/own-condition.md says what is one"
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
