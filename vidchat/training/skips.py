"""Counts updates that were skipped because their gradient was not finite, and whether bad inputs are the cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vidchat.batch import ChunkBatch

LARGEST = 1e6  # magnitude of a plausible input; latents, audio, scores and features are of the order of 1
INPUTS = "inputs"  # share of a step's micro-batches with implausible inputs


class NotFiniteError(RuntimeError):
    """The gradient was not finite several updates in a row."""


class Skips:
    """Counts skipped updates on the device; reading the counts waits for it.

    Args:
        patience: Consecutive updates that may be skipped.
    """

    def __init__(self, patience: int) -> None:
        self.patience, self.updates = patience, 0
        # (2, 2): rows are consecutive and all; columns are skipped updates, and those of them with implausible inputs.
        self._counts = torch.zeros(2, 2)

    def add(self, skipped: Tensor, inputs: Tensor) -> None:
        """Counts an update: whether it was skipped, and whether its inputs were implausible, both scalar tensors."""
        self.updates += 1
        new = torch.stack([skipped, skipped * inputs])
        if self._counts.device != new.device:
            self._counts = torch.zeros_like(self._counts, device=new.device)
        consecutive, total = self._counts
        self._counts = torch.stack([(consecutive + new) * skipped, total + new])

    def refuse(self, step: int, norm: Tensor, losses: Mapping[str, Tensor]) -> None:
        """Raises `NotFiniteError` if more consecutive updates were skipped than patience allows."""
        skips, bad = (int(value) for value in self._counts[0])
        if skips <= self.patience:
            return
        culprits = [name for name, value in losses.items() if not torch.isfinite(value).all()]
        raise NotFiniteError(
            f"at step {step} the gradient norm was {float(norm)} for the {skips}th update in a row (not finite: "
            f"{', '.join(culprits) or 'the gradient only'}); these updates were skipped, so the last checkpoint is "
            f"good: {_remedy(skips, bad)}"
        )

    def summary(self) -> str | None:
        """Returns the message for the end of a run; `None` if no update was skipped."""
        skips, bad = (int(value) for value in self._counts[1])
        if not skips:
            return None
        return (
            f"{skips} of {self.updates} updates were skipped since their gradient was not finite; in {bad} of them the "
            f"batch itself held values that are not finite or beyond {LARGEST:g}"
        )


def _remedy(skips: int, bad: int) -> str:
    cannot = f"held values that are not finite or beyond {LARGEST:g}"
    if bad == skips:
        return f"the data are bad, not the learning rate: the batch of each of these updates {cannot}; mend the data"
    if bad:
        return f"mend the data first ({bad} of these batches {cannot}), then resume with a lower learning rate"
    return "resume from it with a lower learning rate"


def has_implausible(batch: Any, device: torch.device) -> Tensor:
    """Returns 1.0 if an input is not finite or beyond `LARGEST`, else 0.0: a scalar tensor on the batch's device."""
    flags = []
    for value in _floats(batch):
        low, high = value.aminmax()
        flags.append(~((low >= -LARGEST) & (high <= LARGEST)))  # written so that NaN is implausible
    return torch.stack(flags).any().float() if flags else torch.zeros((), device=device)


def _floats(batch: Any) -> Iterator[Tensor]:
    values = batch.values() if isinstance(batch, Mapping) else [batch]
    for value in batch.tensors() if isinstance(batch, ChunkBatch) else values:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            yield value
