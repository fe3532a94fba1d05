"""Settings of a command: the fields of a dataclass, given as KEY=VALUE in the grammar of `vidchat train`.

A field of a nested dataclass has a dotted key, such as `tiers.dover=0.8`. Names, types and defaults are those of the
dataclass, the help is the `Attributes:` of its docstring. Values are taken as typed, without quotes of their own:

    str, Path        any text after the first `=`
    int, float       a number, never nan
    bool             true or false
    Literal          one of its choices
    tuple[X, ...]    values separated by commas, with or without brackets
    tuple[int, int]  a size, HEIGHTxWIDTH
    Mapping[str, X]  one entry with each key, such as `systems.ours=FOLDER`
    X | None         `null` or nothing at all (`workers=`) is None
"""

from __future__ import annotations

import inspect
import math
import re
import shutil
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from vidchat.runtime.sizes import format_size, parse_size

First = TypeVar("First")
Second = TypeVar("Second")
TRUTH = {"true": True, "false": False}
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings; see the list below.", show_default=False),
]
"""The last parameter of a command, whose default is `None`."""


@dataclass(frozen=True)
class Key:
    """A setting.

    Attributes:
        name: Dotted key.
        hint: Type of the value, without `| None`.
        optional: Whether `None` is a value.
        default: Value if the key is not given; `MISSING` if it must be.
        about: Description, from the docstring.
    """

    name: str
    hint: Any
    optional: bool
    default: Any
    about: str

    @property
    def is_mapping(self) -> bool:
        """Whether the key is followed by a name, as in `systems.ours`."""
        return get_origin(self.hint) in (Mapping, dict)


def read_settings(kind: type[First], words: Sequence[str] | None) -> First:
    """Returns a dataclass with the values that words such as `tiers.dover=0.8` give; the last word for a key counts.

    Raises:
        ValueError: a word is not KEY=VALUE, its key does not exist, its value does not fit, or a key is missing.
    """
    return cast(First, _read((kind,), words or ())[0])


def read_two(first: type[First], second: type[Second], words: Sequence[str] | None) -> tuple[First, Second]:
    """Returns two dataclasses whose keys stand side by side; see `read_settings`."""
    settings = _read((first, second), words or ())
    return settings[0], settings[1]


def names_of(*kinds: type) -> list[str]:
    """Returns the dotted keys of dataclasses."""
    return [key.name for kind in kinds for key in _keys(kind)]


def describe_settings(*kinds: type) -> str:
    """Returns the help of dataclasses, an entry `KEY=DEFAULT  description` for each key."""
    rows = [(_shown(key), _description(key)) for kind in kinds for key in _keys(kind)]
    margin = min(max((len(word) for word, _ in rows), default=0) + 2, 36)
    width = max(shutil.get_terminal_size((120, 24)).columns, margin + 40)
    return "\n".join(_entry(word, about, margin, width) for word, about in rows)


def no_key(name: str, known: Sequence[str]) -> str:
    """Returns the sentence that a key does not exist, with the key that is probably meant."""
    near = [key for key in known if key.endswith(f".{name}") or key.startswith(f"{name}.")]
    near = (
        near or get_close_matches(name, known, n=1, cutoff=0.75) or [key for key in known if key.endswith(f"_{name}")]
    )
    meant = f"; did you mean '{near[0]}'? " if near else "; "
    return f"there is no key '{name}'{meant}--help names every key"


def command_with(kinds: Callable[[], Sequence[type]], more: Callable[[], str] | None = None) -> type[TyperCommand]:
    """Returns the class of a Typer command whose help ends with the settings of dataclasses.

    Args:
        kinds: Returns the dataclasses; called for the help only, so it may import slowly.
        more: Returns the help of settings that are read otherwise.
    """

    class Command(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            formatter.write(f"Settings, given as KEY=VALUE:\n\n{describe_settings(*kinds())}\n")
            if more is not None:
                formatter.write(f"\n{more()}")

    return Command


def _read(kinds: Sequence[type], words: Sequence[str]) -> list[Any]:
    known = {key.name: key for kind in kinds for key in _keys(kind)}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ValueError(f"{word[:80]!r} is not understood: give settings as KEY=VALUE; --help names every key")
        key, entry = _find(name, known)
        value = _value(key, name, text)
        if key.is_mapping:
            entries = values.setdefault(key.name, {})
            if entry in entries:
                raise ValueError(f"{name} is given twice; give each a name of its own")
            entries[entry] = value
        else:
            values[key.name] = value
    return [_build(kind, "", values) for kind in kinds]


def _find(name: str, known: Mapping[str, Key]) -> tuple[Key, str]:
    """Returns the key that a name belongs to, and the name of the entry if the key is a mapping."""
    if name in known and not known[name].is_mapping:
        return known[name], ""
    for key in known.values():
        if key.is_mapping and name.startswith(f"{key.name}.") and len(name) > len(key.name) + 1:
            return key, name[len(key.name) + 1 :]
    raise ValueError(no_key(name, [f"{key.name}.NAME" if key.is_mapping else key.name for key in known.values()]))


def _build(kind: type, prefix: str, values: Mapping[str, Any], default: Any = MISSING) -> Any:
    """Returns a dataclass with the given values, and those of `default` elsewhere."""
    hints, chosen = get_type_hints(kind), {}
    for field in fields(kind):
        name = prefix + field.name
        usual = _default(field, default)
        if is_dataclass(hints[field.name]):
            chosen[field.name] = _build(cast(type, hints[field.name]), f"{name}.", values, usual)
        elif name in values:
            chosen[field.name] = values[name]
        elif usual is MISSING:
            raise ValueError(f"{name} is missing; give {name}=VALUE, --help says what it is")
        else:
            chosen[field.name] = usual
    return kind(**chosen)


def _keys(kind: type, prefix: str = "", default: Any = MISSING) -> Iterator[Key]:
    hints, about = get_type_hints(kind), _attributes(kind)
    for field in fields(kind):
        hint, usual = hints[field.name], _default(field, default)
        if is_dataclass(hint):
            yield from _keys(cast(type, hint), f"{prefix}{field.name}.", usual)
            continue
        choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds = [choice for choice in choices if choice is not type(None)]
        if len(kinds) > 1:
            raise TypeError(f"{kind.__name__}.{field.name}: a setting has one type, not {hint}")
        yield Key(prefix + field.name, kinds[0], len(choices) > 1, usual, about.get(field.name, ""))


def _default(field: Any, instance: Any) -> Any:
    """Returns a field's value in an instance, or its default."""
    if instance is not MISSING:
        return getattr(instance, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _attributes(kind: type) -> dict[str, str]:
    """Returns the `Attributes:` of a class and its bases, by name."""
    descriptions: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        _, _, listed = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", "\n" + listed.partition("\n\n")[0]):
            name, colon, text = entry.strip().partition(":")
            if colon and name.isidentifier():
                descriptions[name] = " ".join(text.split())
    return descriptions


def _value(key: Key, name: str, text: str) -> Any:
    """Parses a key's text; errors state `name`."""
    if key.optional and text in ("", "null"):
        return None
    return _parse(get_args(key.hint)[1] if key.is_mapping else key.hint, name, text)


def _parse(hint: Any, name: str, text: str) -> Any:
    choices, origin = get_args(hint), get_origin(hint)
    if hint is str:
        return text
    if hint is Path:
        if not text:
            raise ValueError(f"{name} is a path, and none is given")
        return Path(text)
    if hint in (int, float):
        return _number(hint, name, text)
    if hint is bool:
        if text.lower() not in TRUTH:
            raise ValueError(f"{name} must be true or false, not {text[:80]!r}")
        return TRUTH[text.lower()]
    if origin is Literal:
        if text not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {text[:80]!r}")
        return text
    if hint == tuple[int, int]:
        try:
            return parse_size(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if origin in (tuple, Sequence, list):
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return tuple(_parse(choices[0], name, part.strip()) for part in inner.split(",") if part.strip())
    raise TypeError(f"{name}: there is no way to read {hint} from a word")


def _number(hint: type, name: str, text: str) -> float:
    try:
        number = hint(text)
    except (ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        kind = "a whole number" if hint is int else "a number"
        raise ValueError(f"{name} must be {kind}, not {text[:80]!r}")
    return cast(float, number)


def _shown(key: Key) -> str:
    """Returns `KEY=DEFAULT` as it can be typed; the default is `???` if the key is required."""
    if key.is_mapping:
        return f"{key.name}.NAME={'VALUE' if get_args(key.hint)[1] is not Path else 'PATH'}"
    default = key.default
    if default is MISSING or default is None:
        text = "???" if default is MISSING else "null"
    elif isinstance(default, bool):
        text = str(default).lower()
    elif key.hint == tuple[int, int]:
        text = format_size(default)
    elif isinstance(default, (tuple, list)):
        text = ",".join(map(str, default))
    else:
        text = str(default)
    return f"{key.name}={text}"


def _description(key: Key) -> str:
    kinds = [key.hint, *get_args(key.hint)]
    choices = next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())
    return key.about + (f" [{', '.join(choices)}]" if choices else "")


def _entry(word: str, about: str, margin: int, width: int) -> str:
    first = word if len(word) <= margin - 2 else word + "\n"
    lines = textwrap.wrap(about, width - margin - 2) or [""]
    text = ("\n" + " " * (margin + 2)).join(lines)
    lead = f"  {first:<{margin}}" if first == word else f"  {first}" + " " * (margin + 2)
    return (lead + text).rstrip()
