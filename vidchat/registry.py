"""Names of what a release is built from. A release speaks in names, so that the code behind them can move.

    @register("stacked_vae", by="load")
    class StackedVAE(VideoTokenizer): ...

A node of a release's config is `{type: stacked_vae, directory: video_vae}`: the name, and the builder's arguments. The
name of a class of another package begins with that package, `mylab/my_vae`. It is looked up only if the package is
trusted, since importing it runs its code. A package is trusted by name, or by declaring the entry point `vidchat.names`
when it is installed: `[project.entry-points."vidchat.names"] mylab = "mylab.parts"`, the module that registers names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

ENTRY_POINTS = "vidchat.names"
PARTS = (
    "vidchat.model.responder", "vidchat.conditions", "vidchat.tokenizers.stacked", "vidchat.tokenizers.stft_codec",
    "vidchat.tokenizers.text", "vidchat.tokenizers.packed", "vidchat.tokenizers.causal",
    "vidchat.tokenizers.pretrained_audio", "vidchat.tokenizers.thinker",
)  # fmt: skip
"""Modules that register this package's own names when they are imported; the quicker to import come first."""
_NAME = re.compile(r"([a-z0-9_]+/)?[a-z0-9_]+")
_builders: dict[str, Callable[..., Any]] = {}
T = TypeVar("T", bound=type)


class UnknownName(ValueError):
    """A name that nothing here or in a trusted package is registered under, or a part without a name."""


class WrongArguments(ValueError):
    """A node whose keys are not the arguments of what it names."""


def register(name: str, by: str | None = None) -> Callable[[T], T]:
    """Gives a class a name in releases.

    Args:
        name: `name`, or `package/name` for a class of another package.
        by: Classmethod that builds it from a node's arguments, e.g. `load`; the class itself if `None`.

    Raises:
        ValueError: the name is malformed, another's already, or not of the class's own package.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a release: small letters, digits and _, perhaps after 'package/'")

    def decorate(cls: T) -> T:
        package, taken = cls.__module__.split(".")[0], _builders.get(name)
        if package != "vidchat" and name.split("/")[0] != package:
            raise ValueError(f"{cls.__module__}.{cls.__qualname__} is named {name!r}; call it '{package}/{name}'")
        if taken is not None and _class_of(taken).__qualname__ != cls.__qualname__:
            raise ValueError(f"the name {name!r} is {_path_of(taken)}'s; choose another for {cls.__qualname__}")
        _builders[name] = cls if by is None else getattr(cls, by)
        return cls

    return decorate


def build(node: Any, trust: Iterable[str] = (), **more: Any) -> Any:
    """Builds what a node of a release's config names, its parts first.

    Args:
        node: A mapping with `type` is built; other mappings, lists and values are taken as they are.
        trust: Packages beside this one whose names may be imported.
        more: Arguments that only the caller has.

    Raises:
        UnknownName: see `look_up`.
        WrongArguments: a key is wrong or lacking.
    """
    trust = tuple(trust)
    if isinstance(node, Mapping):
        arguments = {str(key): build(value, trust) for key, value in node.items() if key != "type"} | more
        return _call(str(node["type"]), arguments, trust) if "type" in node else arguments
    return [build(value, trust) for value in node] if isinstance(node, list) else node


def names_in(node: Any) -> Iterator[str]:
    """The names that `build` would look up."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield str(node["type"])
        for key, value in node.items():
            yield from names_in(value) if key != "type" else ()
    elif isinstance(node, list):
        for value in node:
            yield from names_in(value)


def packages_in(node: Any) -> set[str]:
    """The other packages whose parts a node names."""
    return {name.rpartition("/")[0] for name in names_in(node)} - {""}


def _call(name: str, arguments: dict[str, Any], trust: Iterable[str]) -> Any:
    builder = look_up(name, trust)
    signature = inspect.signature(builder)
    try:
        signature.bind_partial(**arguments)  # names a wrong key, rather than the one that lacks for it
        signature.bind(**arguments)
    except TypeError as error:
        raise WrongArguments(f"a key of {name} is wrong or lacking: {error}") from error
    return builder(**arguments)


def look_up(name: str, trust: Iterable[str] = ()) -> Callable[..., Any]:
    """The builder that a name stands for.

    Raises:
        UnknownName: nothing bears it, or its package is not trusted; nothing of that package was imported.
    """
    package = name.rpartition("/")[0]
    if not _NAME.fullmatch(name):
        raise UnknownName(f"{name!r} is no name of a part")
    for module in _modules_of(package, trust):
        if name in _builders:
            break
        _import(module, package)
    if name not in _builders:
        where = f"registered by nothing that {package} imports; is it" if package else "no name vidchat knows; is this"
        raise UnknownName(f"{name} is {where} the version that made this?")
    return _builders[name]


def name_of(builder: Callable[..., Any]) -> str:
    """The name under which a class, or a classmethod of it, is registered.

    Raises:
        UnknownName: it has none.
    """
    for name, known in _builders.items():
        if known == builder:
            return name
    path = _path_of(builder)
    package = path.split(".")[0]
    raise UnknownName(
        f"{path} has no name, so no release can hold it; put @vidchat.registry.register('{package}/...') on its class"
    )


def _modules_of(package: str, trust: Iterable[str]) -> Sequence[str]:
    """The modules that register names: this package's own, or those of `package` if it is trusted."""
    if not package:
        return PARTS
    declared = [point.value for point in entry_points(group=ENTRY_POINTS) if point.name == package]
    if package not in trust and not declared:
        raise UnknownName(
            f"it needs the package {package}, whose code would run here; if you trust it, add trust=[{package}] "
            f"(in Python: load_release(..., trust=['{package}']))"
        )
    return declared or [package]


def _import(module: str, package: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        if not package:
            raise
        raise UnknownName(f"it needs the package {package}, which cannot be imported here: {error}") from error


def _class_of(builder: Callable[..., Any]) -> type:
    return builder if isinstance(builder, type) else builder.__self__  # type: ignore[attr-defined]


def _path_of(builder: Callable[..., Any]) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"
