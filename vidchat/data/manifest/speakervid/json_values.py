"""Values of a JSON record, taken out one by one: of the right type, finite, within bounds, or `Damage`."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from vidchat.data.manifest.speakervid.names import Damage


def parse(data: bytes) -> Any:
    """JSON in UTF-8, with a byte order mark or not; raises `Damage`."""
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
    """A JSON object, and a tally of what it lacks.

    Args:
        data: The object; anything else raises `Damage`.
        absent: Where a key that is asked for and not there (or null) is counted.
    """

    def __init__(self, data: Any, absent: Counter[str]) -> None:
        if not isinstance(data, dict):
            raise Damage("not an object", f"but {_called(data)}")
        self.data, self.absent = data, absent

    def value(self, *keys: str, needed: bool = False) -> tuple[str, Any]:
        """The first of some spellings that is there, and its value; the first spelling and `None` if none is."""
        for key in keys:
            if self.data.get(key) is not None:
                return key, self.data[key]
        if needed:
            raise Damage("missing key", keys[0])
        self.absent[keys[0]] += 1
        return keys[0], None

    def number(self, *keys: str, low: float = -math.inf, high: float = math.inf, needed: bool = False) -> float | None:
        """A finite number within [low, high]."""
        key, value = self.value(*keys, needed=needed)
        return None if value is None else number(key, value, low, high)

    def whole(self, *keys: str, low: int = 0, high: int = 1_000_000) -> int | None:
        """A whole number within [low, high]; 3.0 is one."""
        key, value = self.value(*keys)
        if value is None:
            return None
        result = number(key, value, low, high)
        if result != int(result):
            raise Damage("wrong type", f"'{key}' is {result:g}, not a whole number")
        return int(result)

    def text(self, *keys: str) -> str | None:
        key, value = self.value(*keys)
        return None if value is None else text(key, value)


def number(key: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Raises `Damage` for what is not a number, not finite, or out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Damage("wrong type", f"'{key}' is {_called(value)}, not a number")
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise Damage("out of range", f"'{key}' is a number of {value.bit_length()} bits")
    if not math.isfinite(value):
        raise Damage("not finite", f"'{key}' is {value}")
    if not low <= value <= high:
        raise Damage("out of range", f"'{key}' is {value:g}, not within {low:g} to {high:g}")
    return float(value)


def numbers(key: str, value: Any, count: int) -> list[float]:
    """A list of so many finite numbers."""
    if not isinstance(value, list):
        raise Damage("wrong type", f"'{key}' is {_called(value)}, not a list")
    if len(value) != count:
        raise Damage("wrong length", f"'{key}' has {len(value)} numbers, not {count}")
    return [number(key, v) for v in value]


def text(key: str, value: Any) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise Damage("wrong type", f"'{key}' is {_called(value)}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Damage("not Unicode", f"'{key}' holds half of a character") from None
    return value


def _called(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")
