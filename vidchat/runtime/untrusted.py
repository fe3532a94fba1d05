"""Checks of configs and sizes in files that strangers wrote, made before anything is built from them.

A release comes from the Hub or a colleague. Its config names what to build and how large, so it could read the
environment (`${oc.env:...}`), expand without end (YAML aliases), or ask for ten million layers. Each is refused here,
in one sentence, before any work. `vidchat.registry` limits the classes that a config may name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from safetensors import safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

MOST_BYTES = 1 << 18  # in a config; ours have about 3 kB
MOST_DEPTH = 32
SLACK = 4, 1 << 22  # factor and addend by which a module may allocate more values than its file holds


class UntrustedError(ValueError):
    """A request in a stranger's file that is refused."""


def read_yaml(path: Path) -> Any:
    """Reads a YAML file as plain types, with no interpolation resolved.

    Raises:
        UntrustedError: the file is not YAML, is too large or too deep, or holds aliases or an interpolation.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UntrustedError(f"{path} has more than {MOST_BYTES >> 10} KiB, which no config needs; do not use it")
    try:
        problem = _problem(path.read_text(encoding="utf-8"))
        # OmegaConf's own reader reads 1e-3 as a number; YAML 1.1 does not.
        config = None if problem else OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # parsers fail in many ways on text that was not written for them
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UntrustedError(f"{path} cannot be read: {reason}") from error
    if problem is not None:
        raise UntrustedError(f"{path} holds {problem}; do not use it")
    return config


def _problem(text: str) -> str | None:
    """Returns what a config holds and must not hold, in words; `None` if it is fine."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            return "YAML aliases, by which a small file can grow without end"
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            return "an interpolation (${...}), which could read the environment of whoever loads it"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            return f"more than {MOST_DEPTH} levels"
    return None


@contextmanager
def no_larger_than(weights: Path) -> Iterator[None]:
    """Refuses, while a module is built, more or larger tensors than the file of its weights holds.

    Args:
        weights: Safetensors file; only its header is read.

    Raises:
        UntrustedError: the module is larger than the file; nothing of that size was allocated.
        SafetensorError: the file is damaged.
    """
    with safe_open(weights, "pt") as file:
        sizes = [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    values, tensors = SLACK[0] * sum(sizes) + SLACK[1], SLACK[0] * len(sizes) + 64
    refusal = UntrustedError(
        f"its config describes a far larger network than {weights} holds ({len(sizes)} tensors, {sum(sizes):,} values)"
    )
    count = 0

    def registered(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > tensors:
            raise refusal

    handle = register_module_parameter_registration_hook(registered)
    try:
        with _Allocations(values, refusal):
            yield
    finally:
        handle.remove()


class _Allocations(TorchDispatchMode):
    """Refuses new tensors beyond a limit on the sum of their values, before memory is allocated."""

    def __init__(self, limit: int, refusal: UntrustedError) -> None:
        super().__init__()
        self.left: float = limit
        self.refusal = refusal

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= _allocated_values(func, args)
        if self.left < 0:
            raise self.refusal
        return func(*args, **(kwargs or {}))


def _allocated_values(func: Any, args: Any) -> float:
    """Returns the number of values that an operation allocates, by a size (`empty`) or by a range (`arange`)."""
    if not args or any(isinstance(value, torch.Tensor) for value in torch.utils._pytree.tree_leaves(args)):
        name = func.overloadpacket.__name__  # `new_zeros` and the like take the size second
        return math.prod(args[1]) if name.startswith("new_") and len(args) > 1 else 0
    if isinstance(args[0], list | tuple):
        return math.prod(args[0])
    return max((value for value in args if isinstance(value, int | float)), default=0)
