"""Checked access to the values of a JSON record: of the right type, finite and within bounds, or `Damage`."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from vidchat.data.manifest.speakervid.names import Damage


def parse(data: bytes) -> Any:
    """Parses JSON in UTF-8, with or without a byte order mark; raises `Damage`."""
    if not data.strip(b"\0 \t\r\n"):
        raise Damage("empty file")
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Damage("not UTF-8", f"byte {error.start}") from None
    except RecursionError:
        raise Damage("not JSON", "nested too deeply") from None
    except ValueError as error:
        raise Damage("not JSON", str(error)) from None


class Record:
    """A JSON object with a tally of missing keys.

    Args:
        data: Parsed object; another type raises `Damage`.
        absent: Counter of keys that were requested but are missing or null.
    """

    def __init__(self, data: Any, absent: Counter[str]) -> None:
        if not isinstance(data, dict):
            raise Damage("not an object", f"but {_type_name(data)}")
        self.data, self.absent = data, absent

    def value(self, *keys: str, needed: bool = False) -> tuple[str, Any]:
        """Returns the first existing spelling of a key and its value; else the first spelling and `None`."""
        for key in keys:
            if self.data.get(key) is not None:
                return key, self.data[key]
        if needed:
            raise Damage("missing key", keys[0])
        self.absent[keys[0]] += 1
        return keys[0], None

    def number(self, *keys: str, low: float = -math.inf, high: float = math.inf, needed: bool = False) -> float | None:
        """Returns a finite number within [low, high]."""
        key, value = self.value(*keys, needed=needed)
        return None if value is None else number(key, value, low, high)

    def integer(self, *keys: str, low: int = 0, high: int = 1_000_000) -> int | None:
        """Returns an integer within [low, high]; 3.0 is one."""
        key, value = self.value(*keys)
        if value is None:
            return None
        result = number(key, value, low, high)
        if result != int(result):
            raise Damage("wrong type", f"'{key}' is {result:g}, not an integer")
        return int(result)

    def text(self, *keys: str) -> str | None:
        key, value = self.value(*keys)
        return None if value is None else text(key, value)


def number(key: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number within [low, high]; raises `Damage` for other values."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damage("wrong type", f"'{key}' is {_type_name(value)}, not a number")
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise Damage("out of range", f"'{key}' is a number of {value.bit_length()} bits")
    if not math.isfinite(value):
        raise Damage("not finite", f"'{key}' is {value}")
    if not low <= value <= high:
        raise Damage("out of range", f"'{key}' is {value:g}, not within {low:g} to {high:g}")
    return float(value)


def numbers(key: str, value: Any, count: int) -> list[float]:
    """Returns a list of `count` finite numbers; raises `Damage` for other values."""
    if not isinstance(value, list):
        raise Damage("wrong type", f"'{key}' is {_type_name(value)}, not a list")
    if len(value) != count:
        raise Damage("wrong length", f"'{key}' has {len(value)} numbers, not {count}")
    return [number(key, v) for v in value]


def text(key: str, value: Any) -> str:
    """Returns a string that is valid Unicode; raises `Damage` for other values."""
    if not isinstance(value, str):
        raise Damage("wrong type", f"'{key}' is {_type_name(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Damage("not Unicode", f"'{key}' holds half of a character") from None
    return value


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
