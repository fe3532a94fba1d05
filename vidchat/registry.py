"""Names of the classes that a release is built from. A release holds names, so that the code behind them can move.

    @register("stacked_vae", by="load")
    class StackedVAE(VideoTokenizer): ...

A node of a release's config is `{type: stacked_vae, directory: video_vae}`: the name, and the builder's arguments. The
name of a class of another package begins with that package, `mylab/my_vae`. It is looked up only if the package is
trusted, since importing a package runs its code. A package is trusted by name, or by declaring the entry point
`vidchat.names` when it is installed: `[project.entry-points."vidchat.names"] mylab = "mylab.parts"`, where the module
`mylab.parts` registers the names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

ENTRY_POINTS = "vidchat.names"
MODULES = (
    "vidchat.model.responder", "vidchat.conditions", "vidchat.tokenizers.stacked", "vidchat.tokenizers.stft_codec",
    "vidchat.tokenizers.text", "vidchat.tokenizers.packed", "vidchat.tokenizers.causal",
    "vidchat.tokenizers.pretrained_audio", "vidchat.tokenizers.thinker",
)  # fmt: skip
"""Modules that register this package's own names when they are imported; the quickest to import come first."""
HYDRA_KEYS = {"_target_", "_recursive_", "_convert_"}
"""Keys of Hydra that are dropped where a node is put in names."""
_NAME = re.compile(r"([a-z0-9_]+/)?[a-z0-9_]+")
_builders: dict[str, Callable[..., Any]] = {}
T = TypeVar("T", bound=type)


class UnknownName(ValueError):
    """A name that is registered neither here nor in a trusted package, or a class without a name."""


class WrongArguments(ValueError):
    """A node whose keys are not the arguments of the class that it names."""


class FormatError(ValueError):
    """A config that cannot be put in names, or that would build what no release holds."""


def register(name: str, by: str | None = None) -> Callable[[T], T]:
    """Returns a decorator that gives a class a name in releases.

    Args:
        name: `name`, or `package/name` for a class of another package.
        by: Classmethod that builds the class from a node's arguments, e.g. `load`; `None` for the class itself.

    Raises:
        ValueError: the name is malformed, taken, or does not begin with the package of the class.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a name in a release: use small letters, digits and _, after 'package/' if need be"
        )

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
    """Builds what a node of a release's config names, the nodes inside it first.

    Args:
        node: Node of a config; a mapping with `type` is built, other mappings, lists and values are returned as they
            are.
        trust: Packages beside this one whose code may be imported.
        more: Further arguments, which the config does not hold.

    Raises:
        UnknownName: see `look_up`.
        WrongArguments: a key is wrong or missing, or holds a value where a section belongs.
    """
    trust = tuple(trust)
    if isinstance(node, Mapping):
        arguments = {str(key): build(value, trust) for key, value in node.items() if key != "type"} | more
        return _call(str(node["type"]), arguments, trust) if "type" in node else arguments
    return [build(value, trust) for value in node] if isinstance(node, list) else node


def names_in(node: Any) -> Iterator[str]:
    """Yields the names that `build` would look up."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield str(node["type"])
        for key, value in node.items():
            yield from names_in(value) if key != "type" else ()
    elif isinstance(node, list):
        for value in node:
            yield from names_in(value)


def packages_in(node: Any) -> set[str]:
    """Returns the other packages whose classes a node names."""
    return {name.rpartition("/")[0] for name in names_in(node)} - {""}


def to_names(node: Any, foreign: bool = True) -> Any:
    """Returns a node of a training config with names in place of import paths; a node of names stays as it is.

    Args:
        node: Mappings, sequences and values, plain or OmegaConf's.
        foreign: Whether other packages than this one may be imported.

    Raises:
        UnknownName: a class has no name.
        FormatError: a node holds more than a path and arguments, such as `_partial_`, or cannot be imported.
    """
    if isinstance(node, Mapping):
        other = [key for key in node if str(key).startswith("_") and key not in HYDRA_KEYS]
        if "_target_" in node:
            other += [key for key in node if key == "type"]  # would collide with the name
        if not foreign and "/" in str(node.get("type")):
            raise FormatError(f"it would build {node['type']}, which is not part of vidchat; do not use it")
        if other:
            raise FormatError(f"a release cannot hold {', '.join(map(str, other))}; name a class and its arguments")
        named = {"type": name_of(_imported(str(node["_target_"]), foreign))} if "_target_" in node else {}
        return named | {str(key): to_names(value, foreign) for key, value in node.items() if key not in HYDRA_KEYS}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [to_names(value, foreign) for value in node]
    return node


def look_up(name: str, trust: Iterable[str] = ()) -> Callable[..., Any]:
    """Returns the builder that is registered under a name.

    Raises:
        UnknownName: nothing is, or its package is not trusted; then nothing of that package was imported.
    """
    package = name.rpartition("/")[0]
    if not _NAME.fullmatch(name):
        raise UnknownName(f"{name!r} cannot be a name in a release")
    for module in _modules_of(package, trust):
        if name in _builders:
            break
        _import(module, package)
    if name not in _builders:
        by = f"by no module that {package} imports" if package else "in vidchat"
        raise UnknownName(f"{name} is not registered {by}; is this the version that made the release?")
    return _builders[name]


def name_of(builder: Callable[..., Any]) -> str:
    """Returns the name under which a class, or a classmethod of it, is registered.

    Raises:
        UnknownName: it is not registered.
    """
    for name, registered in _builders.items():
        if registered == builder:
            return name
    path = _path_of(builder)
    package = path.split(".")[0]
    raise UnknownName(
        f"{path} has no name, so no release can hold it; put @vidchat.registry.register('{package}/...') on its class"
    )


def _call(name: str, arguments: dict[str, Any], trust: Iterable[str]) -> Any:
    builder = look_up(name, trust)
    signature = inspect.signature(builder)
    try:
        signature.bind_partial(**arguments)  # reports a wrong key before a missing one
        signature.bind(**arguments)
    except TypeError as error:
        raise WrongArguments(f"a key of {name} is wrong or missing: {error}") from error
    if (key := _value_for_section(builder, arguments)) is not None:
        raise WrongArguments(f"{key} of {name} must hold keys of its own, got {arguments[key]!r}; set one of its keys")
    return builder(**arguments)


def _value_for_section(builder: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Returns an argument that is a plain value although a registered class is expected; `None` if there is none."""
    classes = {_class_of(registered) for registered in _builders.values()}
    try:
        parameters = inspect.signature(builder, eval_str=True).parameters
    except NameError:  # a hint that only type checkers can resolve
        return None
    for key, value in arguments.items():
        hint = parameters[key].annotation if key in parameters else None
        expected = set(get_args(hint) or [hint])
        if expected & classes and type(value) in {bool, int, float, str, list, dict} - expected:
            return key
    return None


def _imported(target: str, foreign: bool) -> Any:
    from hydra.utils import get_object

    if not (foreign or target.startswith("vidchat.")):
        raise FormatError(f"it would build {target}, which is not part of vidchat; do not use it")
    try:
        return get_object(target)
    except Exception as error:  # Hydra's errors, and whatever an import raises
        raise FormatError(f"_target_: {target} cannot be imported: {str(error).partition(chr(10))[0]}") from error


def _modules_of(package: str, trust: Iterable[str]) -> Sequence[str]:
    """Returns the modules that register names: this package's own, or those of `package` if it is trusted."""
    if not package:
        return MODULES
    declared = [point.module for point in entry_points(group=ENTRY_POINTS) if point.name == package]
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
