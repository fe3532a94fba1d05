"""A dataclass read from words, and its help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from vidchat.cli.settings import describe_settings, read_settings, read_two


@dataclass(frozen=True)
class Inner:
    """A section.

    Attributes:
        low: Lowest score
            that passes.
        pick: Way of choosing.
    """

    low: float = 0.5
    pick: Literal["best", "first"] = "best"


@dataclass(frozen=True)
class Work:
    """All types.

    Attributes:
        name: Name of the run.
    """

    name: str
    root: Path | None = Path("here")
    workers: int | None = None
    size: tuple[int, int] | None = None
    kinds: tuple[Literal["a", "b"], ...] = ("a", "b")
    clean: bool = True
    inner: Inner = field(default_factory=lambda: Inner(low=0.7))
    systems: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Beside:
    seed: int = 0


def test_every_type_is_read_from_its_word() -> None:
    words = ["name=it's = ${x}, ok", "root=a=b", "workers=3", "size=48x64", "kinds=[b]", "clean=False", "inner.low=1"]
    read = read_settings(Work, [*words, "systems.round trip.2=x", "workers=4"])
    systems = {"round trip.2": Path("x")}
    assert read == Work("it's = ${x}, ok", Path("a=b"), 4, (48, 64), ("b",), False, Inner(1.0, "best"), systems)


def test_what_is_not_given_is_the_default_of_the_outer_dataclass() -> None:
    assert read_settings(Work, ["name=x", "inner.pick=first", "root=null"]).inner == Inner(0.7, "first")
    assert read_settings(Work, ["name=x", "root="]).root is None
    assert read_two(Work, Beside, ["seed=3", "name=x"]) == (Work("x"), Beside(3))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("inner.lwo=1", "did you mean 'inner.low'?"),
        ("low=1", "did you mean 'inner.low'?"),
        ("=1", "KEY=VALUE"),
        ("name", "KEY=VALUE"),
        ("systems=x", "did you mean 'systems.NAME'?"),
        ("inner.low=nan", "inner.low must be a number"),
        ("workers=1.5", "workers must be a whole number"),
        ("workers=" + "9" * 5000, "workers must be a whole number"),
        ("inner.pick=worst", "must be one of best, first"),
        ("kinds=a,c", "must be one of a, b"),
        ("clean=maybe", "true or false"),
        ("size=64", "HEIGHTxWIDTH"),
        ("seed=1", "no key 'seed'"),
        ("systems.a=x", "given twice"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_settings(Work, ["systems.a=y", word, "name=x"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_key_without_a_default_must_be_given() -> None:
    with pytest.raises(ValueError, match="name is missing; give name=VALUE"):
        read_settings(Work, [])


def test_the_help_names_every_key_with_its_default_and_meaning() -> None:
    lines = [" ".join(line.split()) for line in describe_settings(Work, Beside).splitlines()]
    assert lines == [
        "name=??? Name of the run.",
        "root=here",
        "workers=null",
        "size=null",
        "kinds=a,b [a, b]",
        "clean=true",
        "inner.low=0.7 Lowest score that passes.",
        "inner.pick=best Way of choosing. [best, first]",
        "systems.NAME=PATH",
        "seed=0",
    ]
