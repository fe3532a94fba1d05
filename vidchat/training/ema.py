"""An exponential moving average of a network's parameters, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages the trainable parameters of a network; sampling, validation and releases use the average.

    The decay grows from 0.1 as (1 + n) / (10 + n) until it reaches `decay`, so that the average of a short run does not
    contain its random start.

    Attributes:
        decay: Final share of the old average kept at each update, in [0, 1); 0 makes the average follow the weights.
        updates: Updates made so far.
        average: Parameter name -> fp32 tensor on the parameter's device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the EMA decay must lie in [0, 1), got {decay}; use 0 for no averaging")
        self.network, self.decay, self.updates = network, decay, 0
        self.average = {name: value.detach().float().clone() for name, value in self._parameters()}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, value) for name, value in self.network.named_parameters() if value.requires_grad)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights; call once per optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        self._follow_devices()
        weights = [value.detach().float() for _, value in self._parameters()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1.0 - decay)

    @torch.no_grad()
    def reset(self) -> None:
        """Starts again from the present weights."""
        self.updates = 0
        self.average = {name: value.detach().float().clone() for name, value in self._parameters()}

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Gives the network the averaged weights inside the block and restores its own afterwards, bit for bit."""
        own = self.swap_in()
        try:
            yield
        finally:
            self.swap_out(own)

    @torch.no_grad()
    def swap_in(self) -> dict[str, Tensor]:
        """Gives the network the averaged weights and returns its own, for `swap_out`."""
        self._follow_devices()
        own = {name: value.detach().clone() for name, value in self._parameters()}
        for name, value in self._parameters():
            value.copy_(self.average[name])
        return own

    @torch.no_grad()
    def swap_out(self, own: dict[str, Tensor]) -> None:
        """Gives the network back what `swap_in` returned."""
        for name, value in self._parameters():
            value.copy_(own[name])

    def state_dict(self) -> dict[str, object]:
        """Returns the average and the number of updates; plain types and tensors only."""
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ValueError: the state is of another network.
        """
        average = state["average"]
        assert isinstance(average, dict)
        if average.keys() != self.average.keys():
            odd = sorted(average.keys() ^ self.average.keys())
            raise ValueError(f"the checkpoint's EMA is of another network: {odd[0]} and {len(odd) - 1} more differ")
        self.average = {name: average[name].to(value.device) for name, value in self.average.items()}
        self.updates = int(state["updates"])  # type: ignore[call-overload]

    def _follow_devices(self) -> None:
        for name, value in self._parameters():
            if self.average[name].device != value.device:
                self.average[name] = self.average[name].to(value.device)
