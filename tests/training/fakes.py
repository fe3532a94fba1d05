"""A network small enough to train in a test, random as the responder is, and an endless stream that can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from vidchat.training.checkpoint import Checkpoints
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings


class NoisyModule(TrainingModule):
    """Its loss draws noise and drops units, so a resumed run is only right if its randomness is."""

    def __init__(self, seed: int = 0, **settings: Any) -> None:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, 1))
        super().__init__(network, OptimizerSettings(**({"steps": 20, "warmup": 3, "lr": 1e-2} | settings)), seed)

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        loss = (self.network(batch + 0.1 * torch.randn_like(batch)) - batch.sum(1, keepdim=True)).square().mean()
        return {"loss": loss, "double": 2 * loss.detach()}


class Stream(IterableDataset[Tensor]):
    """Batch k is a function of k."""

    def __init__(self, start: int, poison: int | None = None) -> None:
        self.start, self.poison = start, poison

    def __iter__(self) -> Iterator[Tensor]:
        k = self.start
        while True:
            batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(k))
            yield batch * torch.nan if self.poison is not None and k >= self.poison else batch
            k += 1


class StreamModule(L.LightningDataModule):
    """Knows how many batches training has consumed, as the real one does."""

    def __init__(self, poison: int | None = None) -> None:
        super().__init__()
        self.start, self.poison = 0, poison

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Stream(self.start, self.poison), batch_size=None)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader([torch.ones(3, 4), torch.zeros(3, 4)], batch_size=None)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"consumed": self.trainer.global_step * self.trainer.accumulate_grad_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["consumed"]


class Recorder(L.Callback):
    """The loss of every micro-batch, as exact numbers, and what to do after one of them."""

    def __init__(self, at: int | None = None, then: Any = None) -> None:
        self.losses: list[float] = []
        self.validations: list[tuple[int, float]] = []
        self.at, self.then = at, then

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        if self.at is not None and len(self.losses) == self.at:
            self.then()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


def make_trainer(
    directory: Path, steps: int, callbacks: list[L.Callback], every: int = 100, keep: int = 2, **kwargs: Any
) -> L.Trainer:
    """A trainer as `configs/trainer/cpu.yaml` makes it; the checkpoints come after `callbacks`."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "max_epochs": -1,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "inference_mode": False,
        "logger": False,
        "default_root_dir": str(directory),
    } | kwargs
    return L.Trainer(callbacks=[*callbacks, Checkpoints(directory / "checkpoints", every, keep, {"a": 1})], **options)
