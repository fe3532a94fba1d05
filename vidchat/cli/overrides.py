"""Passes a command line on to Hydra so that free text and paths are taken as they were typed.

Hydra parses the value of `key=value` in a grammar of its own, in which commas, quotes, brackets, `=`, `${` and numbers
have a meaning. For the keys named here the value is quoted first, so `text=Hello, how are you?` is that text. Where
several paths are possible, `[A.mp4,B.mp4]` is a list; a path with a comma is put in double quotes there. An empty value
(`text=`) is null, "not given"; for a path `null` is null too (a file of that name is `./null`). All other keys,
including sweeps with `-m`, are left to Hydra.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidchat.cli.settings import no_key
from vidchat.runtime.errors import FULL_ERROR, hydra_errors
from vidchat.runtime.nested import leaves
from vidchat.runtime.sizes import parse_size
from vidchat.shipped import CONFIGS

TEXTS = frozenset({"text"})
LISTS = frozenset({"initiator"})
"""Keys of paths that also take a list of them."""
INFER_PATHS = LISTS | {"checkpoint", "film", "output", "pairs", "reference", "thinker_from", "voice"}
TRAIN_PATHS = frozenset(
    {"backbone_from", "init_from", "output_dir", "resume", "text_tokenizer.name", "thinker.name", "video_vae.name"}
)
PATHS_ANYWHERE = frozenset({"directory", "export", "name_or_path", "output", "root", "save_dir"})
"""Last parts of dotted keys, such as `data.root`, whose values are paths in every section."""
_typed: list[str] | None = None  # while sys.argv holds quoted words instead


def override(key: str, value: object) -> str:
    """Returns an override in Hydra's grammar that gives `key` this value, a text or a path, unchanged."""
    return f"{key}={_quoted(str(value))}"


def literally(words: Sequence[str], paths: frozenset[str]) -> list[str]:
    """Returns words such as `text=it's fine` with the values of free text and paths quoted; other words are unchanged.

    Args:
        words: Command line after the script's name.
        paths: Keys of paths, besides those that end in one of `PATHS_ANYWHERE`.
    """
    return [_literal(word, paths) for word in words]


def run(
    main: Callable[[], Any], config: str, paths: frozenset[str], about: str | None, words: Sequence[str] | None = None
) -> None:
    """Runs a function made by `hydra.main` on a command line; a mistake in the line ends it with one sentence.

    Args:
        main: Function to run.
        config: Name of its config in configs/.
        paths: Keys of paths, see `literally`.
        about: First part of the help, which is printed instead if `--help` or `-h` is among the words.
        words: Words after the command's name; by default those of this process's command line.
    """
    words = sys.argv[1:] if words is None else list(words)
    if {"--help", "-h"} & set(words):
        print(_help(config, about or ""))
        return
    if unknown := get_args_parser().parse_known_args(words)[1]:
        sys.exit(f"error: {unknown[0]} is not understood: give settings as KEY=VALUE, after -m in a sweep; see --help")
    global _typed
    _typed, sys.argv[1:] = sys.argv[1:], literally(words, paths)
    if os.environ.get(FULL_ERROR) == "1":
        main()
        return
    try:
        with hydra_errors():
            main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {explain_error(error, config)}")
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        groups = ", ".join(sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir()))
        sys.exit(f"error: a group ({groups}) must be given the name of one of its configs, not null; see --help")


def read_size(config: DictConfig) -> DictConfig:
    """Returns the config with `data.size`, which may be HEIGHTxWIDTH, as a list [height, width].

    Raises:
        ValueError: the text is not a size.
    """
    size = OmegaConf.select(config, "data.size")
    if isinstance(size, str):
        try:
            config.data.size = list(parse_size(size))
        except ValueError as error:
            raise ValueError(f"data.size={error}") from error
    return config


def restore_words() -> None:
    """Restores the words that were typed in `sys.argv`: Lightning starts the other ranks with them, which quote them.

    Call it after Hydra has read `sys.argv`.
    """
    global _typed
    if _typed is not None:
        sys.argv[1:], _typed = _typed, None


def sweep_folder() -> str | None:
    """Returns the folder of a sweep's (`-m`) job, relative to the working folder; `None` in a single run."""
    job = HydraConfig.get()
    return os.path.relpath(job.runtime.output_dir) if job.mode == RunMode.MULTIRUN else None


def _literal(word: str, paths: frozenset[str]) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if word.startswith('hydra.run.dir="') and word.endswith('"'):
        return override(key, value[1:-1])  # passed by Lightning to another rank: quotes around the bare path
    is_path = name in paths or ("." in name and name.rpartition(".")[2] in PATHS_ANYWHERE)
    if not equals or not (is_path or name in TEXTS) or name.startswith("hydra."):
        return word
    if value == "" or (is_path and value == "null"):
        return f"{key}=null"
    if name in LISTS and value.startswith("[") and value.endswith("]"):
        several = next(csv.reader([value[1:-1]], skipinitialspace=True), [])
        return f"{key}=[{','.join(_quoted(path) for path in several)}]"
    return override(key, value)


def _quoted(value: str) -> str:
    # OmegaConf halves the backslashes before `${`, Hydra those before a quote and at the end; both keep all others.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return "'" + re.sub(r"(\\*)('|$)", _escaped, value) + "'"


def _escaped(match: re.Match[str]) -> str:
    backslashes, quote = match.groups()
    return 2 * backslashes + ("\\'" if quote else "")


def _help(config: str, about: str) -> str:
    """Returns what a command does, its config with every key's comment, and the choices of each group."""
    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(CONFIGS.iterdir())}
    lines = [f"  {name}={'|'.join(choices)}" for name, choices in groups.items() if choices]
    keys = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    offers = "" if config == "infer" else "\n\nChoices of its groups (configs/):\n" + "\n".join(lines)
    hint = "Text and paths are taken as typed; KEY= is null. Hydra's own help: --hydra-help."
    return f"{about.strip()}\n\nIts keys, given as KEY=VALUE:\n\n{keys.strip()}{offers}\n\n{hint}"


def _keys(config: str) -> list[str]:
    """Returns the dotted keys that the config or any choice of its groups holds."""
    files = [CONFIGS / f"{config}.yaml", *(sorted(CONFIGS.glob("*/**/*.yaml")) if config != "infer" else [])]
    keys: dict[str, None] = {}
    for file in files:
        is_global = file.parent == CONFIGS or "@package _global_" in file.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.load(file))
        keys |= dict.fromkeys(key for key, _ in leaves(tree, "" if is_global else file.relative_to(CONFIGS).parts[0]))
    return [key for key in keys if not key.startswith(("defaults", "hydra."))]


def explain_error(error: Exception, config: str) -> str:
    """Returns Hydra's message, which may have many lines, as one sentence, with the choices that exist."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message: list[str] = []
    for line in lines:
        if line.startswith(("Config search path", "See https", "full_key", "object_type")):
            break
        message.append(line)
    problem, *choices = re.split(r"\s+Available options.*:\s+", " ".join(message))
    problem = problem.rstrip(".")
    if unknown := re.match(r"Could not override '(.+?)'\. To append", problem):
        return no_key(unknown[1], _keys(config))
    if choices:
        return f"{problem} (there are {', '.join(choices[0].split())})"
    return f"{problem}; --help names every key"
