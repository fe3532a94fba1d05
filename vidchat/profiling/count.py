"""Counts the operations of a model, and the values that its products read, by running it on the meta device.

The operations are those of matrix products and attention, as `torch.utils.flop_counter` counts them: 2 for a
multiplication and an addition. Every product reads its second factor from memory: weights, keys or values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

_SECOND = {torch.ops.aten.mm: 1, torch.ops.aten.bmm: 1, torch.ops.aten.addmm: 2, torch.ops.aten.baddbmm: 2}


@dataclass(frozen=True)
class Work:
    """Number of operations, and of values read from the device's memory."""

    flops: float = 0.0
    values: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.values + other.values)

    def __mul__(self, factor: float) -> Work:
        return Work(self.flops * factor, self.values * factor)


def count(model: nn.Module, function: Callable[[], Any]) -> dict[str, Work]:
    """Returns the work of each child module of a model.

    Args:
        model: Model on the meta device, or on a CPU, where attention is not counted.
        function: Function that calls the model.
    """
    with ModuleTracker() as tracker, _Counter(tracker) as counter:
        _Root(model)(function)
    return counter.parts


class _Counter(TorchDispatchMode):
    """Adds the work of every product to the child module that computes it."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.parts: dict[str, Work] = {}
        self._tracker, self._part = tracker, "model"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        second = _SECOND.get(func.overloadpacket)
        if second is not None:
            _, _, *inside = max(self._tracker.parents, key=lambda name: name.count(".")).split(".") + [""] * 2
            self._part = inside[0] or self._part  # a product outside all modules counts for the last one
            work = Work(flop_registry[func.overloadpacket](*args, out_val=out), args[second].numel())
            self.parts[self._part] = self.parts.get(self._part, Work()) + work
        return out


class _Root(nn.Module):
    """Runs a function under the name `_Root`, so that the tracker names a child `_Root.model.CHILD`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()
