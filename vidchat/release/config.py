"""A release's config, read and checked before anything is built from it: a stranger may have written it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vidchat.registry import UnknownName, look_up, names_in
from vidchat.release.format import CONFIG_FILE, TOKENIZERS, ReleaseError, format_problem
from vidchat.runtime.untrusted import UntrustedError, read_yaml

MOST_FPS, MOST_PIXELS = 240, 8192


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 < value <= most


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side, MOST_PIXELS) for side in value)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "fps": lambda value: _is_count(value, MOST_FPS),
    "size": _is_size,
    "allow_portrait": lambda value: isinstance(value, bool),
    "thinker": lambda value: value is None or _is_named(value),
    **{key: lambda value: isinstance(value, dict) for key in ("condition", "fingerprints")},
    **dict.fromkeys(("model", *TOKENIZERS), _is_named),
}
"""Checks of the config's values by key; the building of its nodes checks the rest."""


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a release's config and checks its kind, format and keys.

    Raises:
        ReleaseError: see `load_release`.
    """
    path = _config_path(folder)
    try:
        config = read_yaml(path)
    except (OSError, UntrustedError) as error:
        raise ReleaseError(str(error)) from error
    if not isinstance(config, dict) or config.get("kind") != "responder":
        raise ReleaseError(f"{path} is not the config of a responder's release; export it again")
    problem = format_problem(path, config.get("format"))
    if problem is not None:
        raise ReleaseError(problem)
    missing = {"fps", "size", "allow_portrait", "model", "condition", "fingerprints", *TOKENIZERS} - config.keys()
    if missing:
        raise ReleaseError(f"{path} lacks {', '.join(sorted(missing))}; export the release again")
    wrong = [key for key, is_right in _CHECKS.items() if not is_right(config.get(key))]
    if wrong:
        raise ReleaseError(f"{path}: {wrong[0]} cannot be {str(config.get(wrong[0]))[:80]!r}; export the release again")
    return {str(key): value for key, value in config.items()}


def check_names(folder: Path, config: Mapping[str, Any], trust: Iterable[str]) -> None:
    """Raises `ReleaseError` if the config holds an unknown or untrusted name; nothing is built yet."""
    try:
        for key in ("model", "condition", *TOKENIZERS, "thinker"):
            for name in names_in(config.get(key)):
                look_up(name, trust)
    except UnknownName as error:
        raise ReleaseError(f"{folder / CONFIG_FILE}: {error}") from error


def _config_path(folder: Path) -> Path:
    """Returns the path of a folder's config; raises `ReleaseError` if the folder cannot be a release."""
    if not folder.is_dir():
        kind = "a training checkpoint" if folder.suffix == ".ckpt" else "a file"
        raise ReleaseError(f"{folder} is {kind}, not a release; give the folder that train.py exported")
    if not (folder / CONFIG_FILE).is_file():
        kind = "a tokenizer's folder" if (folder / "config.json").is_file() else "a folder without config.yaml"
        raise ReleaseError(f"{folder} is {kind}, not a release; give the folder that train.py exported")
    return folder / CONFIG_FILE
