"""Checks a run's config before anything is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidchat.conditions.base import ConditionError
from vidchat.conditions.node import read_conditions
from vidchat.data.folder import MANIFESTS
from vidchat.registry import FormatError, UnknownName, WrongArguments, packages_in, to_names
from vidchat.runtime.nested import differing_leaves
from vidchat.shipped import find
from vidchat.training.config_values import wrong_values
from vidchat.training.fit import advice, check_fit
from vidchat.training.machine import missing_on_this_machine

log = logging.getLogger(__name__)
REQUIRED = ("data.root", "output_dir", "_vae.directory", "_codec.directory")  # paths that cannot be null


class ConfigError(ValueError):
    """All problems of a config, each with the key to change."""


def check_config(config: DictConfig) -> dict[str, Any]:
    """Returns the config resolved to plain types, after all checks that are cheap.

    Raises:
        ConfigError: the config is wrong; the message holds all problems.
        FitError: the model does not fit the frames or the device, see `vidchat.training.fit`.
    """
    missing = list(_missing(OmegaConf.to_container(config)))
    if missing:
        hint = f"the folder that holds {MANIFESTS[0]}" if missing[0] == "data.root" else "see configs/"
        raise ConfigError(f"{' and '.join(missing)} must be given; add {missing[0]}=... ({hint})")
    try:
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config cannot be resolved: {str(error).splitlines()[0]}") from error
    if wrong := _sections(plain):
        raise ConfigError("; ".join(wrong))
    problems = [*_interpolations(plain), *_paths(plain), *wrong_values(plain), *_tokenizers(plain), *_nameless(plain)]
    problems += _conditions(plain)
    problems += missing_on_this_machine(plain)
    if problems:
        raise ConfigError("; ".join(problems))
    model = check_fit(plain)
    warning = None if model is None else advice(plain, model)
    if warning is not None:
        log.warning(warning)
    return plain


def _sections(config: dict[str, Any]) -> list[str]:
    """Returns problems of keys that must be sections; the other checks rely on them."""
    sections = ["data", "model", "condition", "trainer", "checkpoints", "stage", "stage.module", "stage.datamodule"]
    if "optimizer" in config["stage"]:
        sections.append("stage.optimizer")
    problems = []
    for key in sections:
        name, _, rest = key.partition(".")
        value = config[name].get(rest) if rest and isinstance(config[name], dict) else config[name]
        if not isinstance(value, dict):
            problems.append(f"{key} must hold keys of its own, got {value}; leave it out, or set one of its keys")
    return problems


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """Yields the keys whose values must be given."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{key}.{name}" if key else str(name))
    elif node == "???" or (node is None and key.endswith(REQUIRED)):
        yield key


def _interpolations(config: dict[str, Any]) -> list[str]:
    """Returns a problem if a value would be read as an interpolation when objects are built from the config."""
    leaves = differing_leaves(config, {})
    keys = [key for key, value, _ in leaves if isinstance(value, str) and "${" in value]
    return [f"{keys[0]} holds '${{', which a config cannot hold; rename the folder, or link to it"] if keys else []


def _paths(config: dict[str, Any]) -> list[str]:
    problems = []
    root = Path(config["data"]["root"])
    if config["data"]["prepare"] is None:
        if not root.is_dir():
            problems.append(f"data.root={root} is no folder; give one that holds {MANIFESTS[0]}")
        elif not any((root / name).is_file() for name in MANIFESTS):
            problems.append(f"data.root={root} holds no {MANIFESTS[0]}; write one line for each dialogue")
    for key in ("init_from", "resume"):
        value = config[key]
        if value is not None and not (key == "resume" and value == "auto") and not find(value).exists():
            problems.append(f"{key}={value} does not exist")
    return problems


def _tokenizers(config: dict[str, Any]) -> list[str]:
    """Returns problems of tokenizers whose folders do not exist."""
    problems = []
    for name in config["stage"]["tokenizers"]:
        directory = (config[name] or {}).get("directory")
        if directory is not None and not find(directory).is_dir():
            problems.append(f"{name}.directory={directory} is no folder; give one that holds a tokenizer, or train one")
    return problems


def _conditions(config: dict[str, Any]) -> list[str]:
    """Returns the problem of the conditions of a responder's stage, if there is one."""
    try:
        node = to_names(config["condition"])
        read_conditions(node, packages_in(node))
    except (ConditionError, FormatError, UnknownName, WrongArguments) as error:
        message = str(error)
        return [message if message.startswith("condition.") else f"condition: {message}"]
    return []


def _nameless(config: dict[str, Any]) -> list[str]:
    """Returns problems of tokenizers that have no name, so that a release could not hold them."""
    problems = []
    for name in config["stage"]["tokenizers"]:
        try:
            to_names(config[name])
        except (UnknownName, FormatError) as error:
            problems.append(f"{name}: {error}")
    return problems
