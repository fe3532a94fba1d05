"""The words of a command line on their way to Hydra: free text and paths are taken as they were typed.

Hydra reads the value of `key=value` in a grammar of its own, where commas, quotes, brackets, `=`, `${` and numbers mean
something. For the keys named here the value is quoted first, so that `text=Hello, how are you?` says just that. After
such a key nothing at all (`text=`) is null, "not given"; after a key of a path, `null` is too (a file of that name is
`./null`). Every other key, sweeps with `-m` included, is left to Hydra.
"""

from __future__ import annotations

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
INFER_PATHS = frozenset({"checkpoint", "initiator", "output", "pairs", "reference", "thinker_from", "voice"})
TRAIN_PATHS = frozenset(
    {"backbone_from", "init_from", "output_dir", "resume", "text_tokenizer.name", "thinker.name", "video_vae.name"}
)
PATHS_ANYWHERE = frozenset({"directory", "export", "name_or_path", "output", "root", "save_dir"})
"""Last parts of dotted keys, such as `data.root`, that are paths wherever they stand."""
_typed: list[str] | None = None  # while sys.argv holds quoted words instead


def override(key: str, value: object) -> str:
    """An override that gives `key` this value as it is, a text or a path, in Hydra's grammar."""
    return f"{key}={_quoted(str(value))}"


def literally(words: Sequence[str], paths: frozenset[str]) -> list[str]:
    """Quotes the values of free text and paths in words such as `text=it's fine`; other words stay as they are.

    Args:
        words: What stands on a command line after the script's name.
        paths: Keys of paths, besides those that end in one of `PATHS_ANYWHERE`.
    """
    return [_literal(word, paths) for word in words]


def run(
    main: Callable[[], Any], config: str, paths: frozenset[str], about: str | None, words: Sequence[str] | None = None
) -> None:
    """Runs a function made by `hydra.main` on a command line; what is wrong with it is one sentence.

    Args:
        main: The function.
        config: The name of its config in configs/.
        paths: See `literally`.
        about: The first part of the help, which is printed instead if `--help` or `-h` is among the words.
        words: What stands behind the command's name; by default the words of this process's command line.
    """
    words = sys.argv[1:] if words is None else list(words)
    if {"--help", "-h"} & set(words):
        print(_help(config, about or ""))
        return
    if unknown := get_args_parser().parse_known_args(words)[1]:
        sys.exit(f"error: {unknown[0]} is not understood: keys are given as KEY=VALUE, after -m in a sweep; see --help")
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
        ValueError: it is neither.
    """
    size = OmegaConf.select(config, "data.size")
    if isinstance(size, str):
        try:
            config.data.size = list(parse_size(size))
        except ValueError as error:
            raise ValueError(f"data.size={error}") from error
    return config


def restore_words() -> None:
    """Gives `sys.argv` the words that were typed: Lightning starts the other ranks with them, which quote them again.

    To be called when Hydra has read them.
    """
    global _typed
    if _typed is not None:
        sys.argv[1:], _typed = _typed, None


def sweep_folder() -> str | None:
    """The folder of its own that a job of a sweep (`-m`) has, from here; `None` in a single run."""
    job = HydraConfig.get()
    return os.path.relpath(job.runtime.output_dir) if job.mode == RunMode.MULTIRUN else None


def _literal(word: str, paths: frozenset[str]) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if word.startswith('hydra.run.dir="') and word.endswith('"'):
        return override(key, value[1:-1])  # Lightning's word to another rank: quotes around the bare path
    path = name in paths or ("." in name and name.rpartition(".")[2] in PATHS_ANYWHERE)
    if not equals or not (path or name in TEXTS) or name.startswith("hydra."):
        return word
    if value == "" or (path and value == "null"):
        return f"{key}=null"
    return override(key, value)


def _quoted(value: str) -> str:
    # OmegaConf halves the backslashes before `${`, Hydra those before a quote and at the end; both keep all others.
    value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return "'" + re.sub(r"(\\*)('|$)", _escaped, value) + "'"


def _escaped(match: re.Match[str]) -> str:
    backslashes, quote = match.groups()
    return 2 * backslashes + ("\\'" if quote else "")


def _help(config: str, about: str) -> str:
    """What a script does, its config with every key's comment, and what each group offers."""
    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(CONFIGS.iterdir())}
    lines = [f"  {name}={'|'.join(choices)}" for name, choices in groups.items() if choices]
    keys = (CONFIGS / f"{config}.yaml").read_text(encoding="utf-8").partition("\nhydra:")[0]
    offered = "" if config == "infer" else "\n\nWhat its groups offer (configs/):\n" + "\n".join(lines)
    hint = "Text and paths are taken as typed; KEY= gives nothing. Hydra's own help: --hydra-help."
    return f"{about.strip()}\n\nIts keys, to be given as KEY=VALUE:\n\n{keys.strip()}{offered}\n\n{hint}"


def _keys(config: str) -> list[str]:
    """Dotted keys that the config or any choice of its groups holds."""
    files = [CONFIGS / f"{config}.yaml", *(sorted(CONFIGS.glob("*/**/*.yaml")) if config != "infer" else [])]
    found: dict[str, None] = {}
    for file in files:
        whole = file.parent == CONFIGS or "@package _global_" in file.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.load(file))
        found |= dict.fromkeys(key for key, _ in leaves(tree, "" if whole else file.relative_to(CONFIGS).parts[0]))
    return [key for key in found if not key.startswith(("defaults", "hydra."))]


def explain_error(error: Exception, config: str) -> str:
    """Hydra's message, which may have many lines, in one; with what there is to choose from."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept: list[str] = []
    for line in lines:
        if line.startswith(("Config search path", "See https", "full_key", "object_type")):
            break
        kept.append(line)
    told, *choices = re.split(r"\s+Available options.*:\s+", " ".join(kept))
    told = told.rstrip(".")
    if unknown := re.match(r"Could not override '(.+?)'\. To append", told):
        return no_key(unknown[1], _keys(config))
    if choices:
        return f"{told} (there are {', '.join(choices[0].split())})"
    return f"{told}; --help names every key"
