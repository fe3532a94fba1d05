"""CUDA graphs: a loop of many small kernels becomes one launch.

For every chunk, the flow head is called (sets x steps) times on a few tokens, and the depth transformer once per code.
On a GPU nearly all of that time is spent launching kernels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Loop = Callable[..., Tensor]


def bucket(count: int) -> int:
    """Returns the power of two that a number of tokens is padded to."""
    return 1 << (count - 1).bit_length()


class CapturedLoops:
    """Runs loops as CUDA graphs, captured once per size of their tensors; without CUDA it calls them directly.

    A loop must be a function of its tensors alone, without random draws or waits for the device, and its shapes must
    not depend on data. Graphs read the weights at their addresses at capture: see `check_weights`. Not thread-safe.
    """

    def __init__(self) -> None:
        self._refused: set[Loop] = set()  # loops whose capture has failed; they are called directly
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}
        self._weights: list[tuple[int, torch.dtype]] = []

    def check_weights(self, model: nn.Module) -> None:
        """Drops all graphs if the weights have moved in memory or changed their type since the last call."""
        weights = [(parameter.data_ptr(), parameter.dtype) for parameter in model.parameters()]
        if weights != self._weights:
            self._graphs.clear()
            self._weights = weights

    def run(self, loop: Loop, tensors: tuple[Tensor, ...], *settings: Hashable) -> Tensor:
        """Returns `loop(*tensors, *settings)`."""
        if loop in self._refused or not _can_capture(tensors[0].device):
            return loop(*tensors, *settings)
        key = (loop, *((x.shape, x.dtype) for x in tensors), *settings)
        if key not in self._graphs:
            try:
                self._graphs[key] = _capture(loop, tensors, settings)
            except RuntimeError as error:
                name, reason = getattr(loop, "__qualname__", loop), str(error).splitlines()[0]
                log.warning("%s runs without a CUDA graph: %s", name, reason)
                self._refused.add(loop)
                return loop(*tensors, *settings)
        graph, inputs, out = self._graphs[key]
        for buffer, tensor in zip(inputs, tensors, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return out.clone()  # the next replay writes to the same memory

    def run_padded(self, loop: Loop, noise: Tensor, condition: Tensor, *settings: Hashable) -> Tensor:
        """Runs a loop that treats tokens independently, padded to the next power of two; returns tokens (n, D_v).

        A few graphs then serve all set sizes.

        Args:
            loop: Function from noise (n, D_v) and conditions (n, W), or (2n, W) with guidance, to tokens (n, D_v).
            noise: (n, D_v).
            condition: (n, W), or (2n, W) with guidance, conditional ones first.
            settings: Further arguments of the loop.
        """
        count, size = len(noise), bucket(len(noise))
        halves = [pad(half, size) for half in condition.split(count)]
        padded = pad(noise, size), halves[0] if len(halves) == 1 else torch.cat(halves)
        return self.run(loop, padded, *settings)[:count]


def pad(x: Tensor, size: int) -> Tensor:
    """Pads (n, D) with rows of zeros to (size, D)."""
    return torch.nn.functional.pad(x, (0, 0, 0, size - len(x)))


def _can_capture(device: torch.device) -> bool:
    # Under autocast the weights are cast into memory that is freed while a graph would still read it.
    return device.type == "cuda" and not torch.is_autocast_enabled("cuda")


def _capture(
    loop: Loop, tensors: tuple[Tensor, ...], settings: tuple[Hashable, ...]
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
    """Returns the graph, its inputs and its output; libraries initialise themselves in a few plain runs before."""
    inputs = tuple(x.clone() for x in tensors)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            loop(*inputs, *settings)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use CUDA during capture: a training run's data loader pins memory while samples are drawn.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"), torch.no_grad():
        out = loop(*inputs, *settings)
    return graph, inputs, out
