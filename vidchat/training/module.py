"""What every stage's LightningModule shares: from a batch's losses to moved weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vidchat.training.ema import EMA
from vidchat.training.schedule import OptimizerSettings, clip_and_guard, make_optimizer
from vidchat.training.seeding import seed_for, seed_step


class NotFiniteError(RuntimeError):
    """The gradient was not finite several updates in a row."""


class TrainingModule(L.LightningModule):
    """Trains `network`; a subclass says what its losses are and how the result is exported.

    Randomness is seeded for each micro-batch, the update is skipped when the gradient is not finite, and an average of
    the weights follows each update. Its state, with the optimizer's, the schedule's and the data position, is in the
    checkpoint: a run that stops and resumes is bit for bit the run that never stopped.

    Args:
        network: What is trained, averaged and exported.
        optimizer: How.
        seed: Of everything random in training.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerSettings | None = None, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.settings = optimizer or OptimizerSettings()
        self.seed = seed
        self.ema = EMA(network, self.settings.ema_decay)
        self._place = (-1, 0)  # optimizer step and micro-batch, both counted from 0
        self._own: dict[str, Tensor] | None = None
        self._skips = torch.zeros(())  # consecutive updates skipped
        self._last: dict[str, Tensor] = {}  # the losses of the last micro-batch

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars to log by name; `loss` is minimised."""
        raise NotImplementedError

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes what was trained to a folder that stands for itself."""
        raise NotImplementedError

    # One step of training, in the order in which Lightning calls it.

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step, micro = self._place
        self._place = (self.global_step, micro + 1 if step == self.global_step else 0)
        seed_step(self.seed, *self._place, self.global_rank)
        losses = self.losses(batch)
        self._last = {name: value.detach() for name, value in losses.items()}
        for name, value in self._last.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)
        return losses["loss"]

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        norm, skipped = clip_and_guard(optimizer, self.network, self.settings.clip)
        self.log("train/grad_norm", norm, batch_size=1)
        # A tensor here: Lightning would copy a number to the device, which waits for all work before it.
        self.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"]), batch_size=1)
        self._skips = (self._skips.to(skipped) + 1) * skipped
        # Waiting for the device once per logged line, not once per step.
        due = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or self.device.type == "cpu":
            self._refuse_nan(norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update()

    def _refuse_nan(self, norm: Tensor) -> None:
        skips = int(self._skips)
        if skips > self.settings.patience:
            culprits = [name for name, value in self._last.items() if not torch.isfinite(value).all()]
            raise NotFiniteError(
                f"at step {self.global_step} the gradient norm was {float(norm)} for the {skips}th update in a row "
                f"(not finite: {', '.join(culprits) or 'the gradient only'}); these updates were skipped, so the last "
                "checkpoint is good: resume from it with a lower learning rate"
            )

    def configure_optimizers(self) -> Any:
        optimizer, schedule = make_optimizer(self.network, self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # Validation, on the averaged weights and with the same randomness each time.

    def on_validation_start(self) -> None:
        self._own = self.ema.swap_in()

    def on_validation_end(self) -> None:
        if self._own is not None:
            self.ema.swap_out(self._own)
            self._own = None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.manual_seed(seed_for(self.seed, "val", batch_idx, self.global_rank))
        with torch.compiler.set_stance("force_eager"):  # a few batches are not worth another compilation
            losses = self.losses(batch)
        for name, value in losses.items():
            self.log(f"val/{name}", value.detach(), prog_bar=name == "loss", batch_size=1, sync_dist=True)

    # What a checkpoint holds besides Lightning's own.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
