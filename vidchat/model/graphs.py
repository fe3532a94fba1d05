"""CUDA graphs: a loop of many small kernels as one launch.

The flow head is called (sets x steps) times for each chunk on a few tokens each: on a GPU nearly all of that time is
spent launching kernels. A graph is captured for each number of tokens, and tokens are padded to the next power of two,
so that a handful of graphs serves every set size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Loop = Callable[[Tensor, Tensor, int, float], Tensor]


def bucket(count: int) -> int:
    """The power of two that a number of tokens is padded to."""
    return 1 << (count - 1).bit_length()


class CapturedLoops:
    """Runs a loop over tokens as a CUDA graph; without CUDA it runs it as it is, padded in the same way.

    The loop must be a function of its tensors alone (no random draws, no waiting for the device) that treats each token
    on its own. Graphs read the weights where they lay at capture, so these must not be moved while this is in use.
    """

    def __init__(self) -> None:
        self._refused = False  # by the device, once; generation then goes on without
        self._graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def run(self, loop: Loop, noise: Tensor, condition: Tensor, steps: int, guidance: float) -> Tensor:
        """`loop(noise, condition, steps, guidance)`.

        Args:
            loop: From noise (n, D_v) and conditions (n, W), or (2n, W) with guidance, to tokens (n, D_v).
            noise: (n, D_v).
            condition: (n, W), or (2n, W) with guidance, conditioned ones first.
            steps: Passed on.
            guidance: Passed on.
        """
        count, size = len(noise), bucket(len(noise))
        halves = [pad(half, size) for half in condition.split(count)]
        padded = pad(noise, size), halves[0] if len(halves) == 1 else torch.cat(halves)
        # Under autocast the weights are cast into memory that is given back while a graph would still read it.
        if self._refused or not noise.is_cuda or torch.is_autocast_enabled("cuda"):
            return loop(*padded, steps, guidance)[:count]
        key = (size, steps, guidance, condition.dtype)
        if key not in self._graphs:
            try:
                self._graphs[key] = _capture(loop, *padded, steps, guidance)
            except RuntimeError as error:
                log.warning("the flow head's loop runs without a CUDA graph: %s", str(error).splitlines()[0])
                self._refused = True
                return loop(*padded, steps, guidance)[:count]
        graph, noise_in, condition_in, out = self._graphs[key]
        noise_in.copy_(padded[0])
        condition_in.copy_(padded[1])
        graph.replay()
        return out[:count].clone()  # the next replay writes to the same memory


def pad(x: Tensor, size: int) -> Tensor:
    """(n, D) with zeros below up to (size, D)."""
    return torch.nn.functional.pad(x, (0, 0, 0, size - len(x)))


def _capture(
    loop: Loop, noise: Tensor, condition: Tensor, steps: int, guidance: float
) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
    """The graph, its two inputs and its output; a few plain runs come first, as libraries set themselves up in them."""
    noise, condition = noise.clone(), condition.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):
            loop(noise, condition, steps, guidance)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on meanwhile: a training run's data loader pins memory in one while samples are drawn.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"), torch.no_grad():
        out = loop(noise, condition, steps, guidance)
    return graph, noise, condition, out
