"""Damage to bytes, and values that nobody expects, all from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# JSON texts that are not what anybody meant, with what Python's reader accepts beyond the standard.
VALUES = (
    "null", "true", "-1", "0", "1.5", "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "1" + 400 * "0",
    "9223372036854775808", '""', '" "', '"x"', '"\\u0000"', '"\\ud800"', '"../../etc/passwd"', '"/etc/passwd"', "[]",
    "[[]]", "{}", '{"a": 1}', f'"{300 * "n"}"', '"${oc.env:HOME}"', '"' + "é" * 200 + '"', '"a\\nb"', '"."', '".."',
    '"a\\\\b"', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000,
)  # fmt: skip


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 4, 16))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _noise(data: bytearray, chance: random.Random) -> None:
    first, length = _span(data, chance)
    data[first : first + length] = chance.randbytes(length)


def _zeros(data: bytearray, chance: random.Random) -> None:
    first, length = _span(data, chance)
    data[first : first + length] = bytes(length)


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _lose(data: bytearray, chance: random.Random) -> None:
    first, length = _span(data, chance)
    del data[first : first + length]


def _repeat(data: bytearray, chance: random.Random) -> None:
    first, length = _span(data, chance)
    data[first:first] = data[first : first + length] * chance.choice((1, 1, 10))


def _number(data: bytearray, chance: random.Random) -> None:
    """A number of 1 to 8 bytes, of either order, becomes one at the edge of its range."""
    size, order = chance.choice((1, 2, 4, 4, 4, 8)), chance.choice(("big", "big", "little"))
    first = chance.randrange(len(data))
    value = chance.choice(NUMBERS) & (256**size - 1)
    data[first : first + size] = value.to_bytes(size, order)[: len(data) - first]  # type: ignore[arg-type]


def _letters(data: bytearray, chance: random.Random) -> None:
    """Four letters in a row, a name or a tag, become bytes of another alphabet."""
    first = chance.randrange(max(1, len(data) - 4))
    data[first : first + 4] = chance.choice(
        (b"\xa9\xe9\xff\xfe", b"\xc3\x28\xa0\xa1", b"free", b"mdat", b"\x00\x00\x00\x00")
    )


DAMAGE: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _noise, _zeros, _cut, _lose, _repeat, _number, _number, _letters,
)  # fmt: skip


def _span(data: bytearray, chance: random.Random) -> tuple[int, int]:
    return chance.randrange(len(data)), chance.choice((1, 4, 16, 64, 400))


def damaged(data: bytes, seed: int) -> tuple[str, bytes]:
    """A damaged copy and what was done to it; half of the damage is done to the first or last two kilobytes."""
    chance, out = random.Random(seed), bytearray(data)
    damage = chance.choice(DAMAGE)
    edge = min(2048, len(out))
    where = chance.choice(("anywhere", "anywhere", "head", "tail"))
    if where == "anywhere":
        damage(out, chance)
    else:
        part = out[:edge] if where == "head" else out[len(out) - edge :]
        damage(part, chance)
        out = part + out[edge:] if where == "head" else out[: len(out) - edge] + part
    return f"{damage.__name__[1:]} {where}", bytes(out)


def damaged_json(value: Any, seed: int) -> tuple[str, str]:
    """JSON text in which a value, chosen by the seed, is another, is gone, or stands under another key."""
    chance = random.Random(seed)
    places = list(_places(value))
    path = chance.choice(places)
    mark = "\0here"
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    kind = chance.choice(("value", "value", "value", "gone", "renamed"))
    if kind == "gone":
        del parent[path[-1]]
    elif kind == "renamed" and isinstance(parent, dict):
        parent[str(path[-1]) + " "] = parent.pop(path[-1])
    else:
        parent[path[-1]] = mark
    new = chance.choice(VALUES)
    return f"{'.'.join(map(str, path))} {kind} {new[:30]}", json.dumps(copy).replace(json.dumps(mark), new)


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        for path in _places(inner):
            yield (key, *path)
