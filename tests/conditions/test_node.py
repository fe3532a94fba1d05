"""The `condition` node of a config: enabled conditions, their order, and invalid settings."""

from __future__ import annotations

from typing import Any

import pytest

from vidchat.conditions.base import ConditionError
from vidchat.conditions.node import read_conditions
from vidchat.conditions.scores import Scores
from vidchat.conditions.text import Text
from vidchat.conditions.thinker import ThinkerFeatures
from vidchat.conditions.voice import Voice
from vidchat.registry import UnknownName, WrongArguments

OFF = {
    "text": None,
    "initiator": True,
    "voice": False,
    "scores": [],
    "features": 0,
    "drop": 0.1,
}


def test_disabled_conditions_and_other_keys_are_left_out() -> None:
    assert read_conditions(OFF) == {}


def test_conditions_keep_the_order_of_the_config_and_accept_short_or_named_settings() -> None:
    short = {"text": "question", "voice": True, "scores": ["dover"], "features": 7}
    long = {"text": {"turn": "question"}, "voice": {}, "scores": {"names": ["dover"]}, "features": {"width": 7}}
    expected = {
        "text": Text("question"),
        "voice": Voice(12),
        "scores": Scores(("dover",)),
        "features": ThinkerFeatures(7),
    }
    for node in (short, long):
        chosen = read_conditions(OFF | node)
        assert chosen == expected
        assert list(chosen) == list(expected)


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ({"text": "x"}, ConditionError, "condition.text must be answer, question or null, got x"),
        ({"scores": 3}, ConditionError, "condition.scores must be a list of names of scores, got 3"),
        ({"features": -1}, ConditionError, "condition.features must be a whole number"),
        ({"voice": "loud"}, ConditionError, "condition.voice must be true, false or a number of chunks"),
        ({"bytes": True}, ConditionError, "condition.bytes: bytes is not a condition"),
        ({"gaze": True}, UnknownName, "gaze is not registered in vidchat"),
        ({"gaze": {"type": "mylab_y/gaze"}}, UnknownName, "it needs the package mylab_y"),
        ({"text": {"trun": "answer"}}, WrongArguments, "'trun'"),
    ],
)
def test_an_invalid_condition_is_refused_with_its_key(
    node: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_conditions(OFF | node)
