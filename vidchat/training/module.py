"""The LightningModule that all stages share: from the losses of a batch to updated weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from vidchat.runtime.distributed import copy_from_first_rank
from vidchat.training.ema import EMA
from vidchat.training.schedule import OptimizerSettings, clip_and_guard, make_optimizer
from vidchat.training.seeding import seed_for, seed_step
from vidchat.training.skips import INPUTS, Skips, has_implausible
from vidchat.training.skips import NotFiniteError as NotFiniteError  # an error that ends a run of this module
from vidchat.training.totals import Totals

log = logging.getLogger(__name__)


class TrainingModule(L.LightningModule):
    """Trains `network` by its `loss`; a subclass defines the export and may define other losses.

    Randomness is seeded for each micro-batch, an update is skipped if its gradient is not finite, and an average of the
    weights follows each update. The checkpoint holds this state, with that of the optimizer, the schedule and the data
    position: a run that stops and resumes is bit for bit the run that never stopped.

    A step's micro-batches, accumulated or on several ranks, are one large batch: each is weighted by its `count` and
    seeded by its index among all of them, so two ranks equal one rank that accumulates two batches.

    Args:
        network: Network to train, average and export.
        optimizer: Settings of the optimizer.
        seed: Seed of all randomness in training.

    Attributes:
        position: Optimizer step and this rank's micro-batch, both counted from 0.
        micro_batches: Number of micro-batches in one optimizer step, over all ranks.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerSettings | None = None, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.settings = optimizer or OptimizerSettings()
        self.seed = seed
        self.ema = EMA(network, self.settings.ema_decay)
        self.position, self.micro_batches = (-1, 0), 1
        self.totals, self._validated = Totals(), Totals()
        self.skips = Skips(self.settings.patience)
        self._own: dict[str, Tensor] | None = None

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Returns scalars to log by name, each a mean over the items that `count` counts; `loss` is minimised.

        The micro-batches of one step share a seed, so that they predict the same number of tokens of each chunk.
        """
        together = self.training and self.micro_batches > 1
        shared = seed_for(self.seed, "masked", self.position[0]) if together else None
        losses: dict[str, Tensor] = self.network.loss(batch, shared)  # type: ignore[operator]
        return losses

    def count(self, batch: Any) -> Tensor:
        """Returns the number of items that a batch's losses are means over, a scalar tensor on its device.

        For a dictionary of tensors this is its `count` if it has one, else the number of clips; for others it is 1.
        """
        if isinstance(batch, Mapping) and "count" in batch:
            return torch.as_tensor(batch["count"])
        clips = len(next(iter(batch.values()))) if isinstance(batch, Mapping) else 1
        return torch.full((), float(clips), device=self.device)

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes the trained network to a folder that is complete in itself."""
        raise NotImplementedError

    # One step of training, in the order in which Lightning calls it.

    def on_train_start(self) -> None:
        # DDP has copied rank 0's weights to all ranks; the average was taken before that.
        copy_from_first_rank(self.ema.average.values())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step, micro = self.position
        self.position = (self.global_step, micro + 1 if step == self.global_step else 0)
        ranks: int = self.trainer.world_size
        self.micro_batches = ranks * self.trainer.accumulate_grad_batches
        seed_step(self.seed, self.position[0], self.position[1] * ranks + self.global_rank)
        losses, count = self.losses(batch), self.count(batch)
        self.totals.add(count, losses | {INPUTS: has_implausible(batch, self.device)})
        # Lightning and DDP average these; right before the update this becomes the mean over the counted items.
        return losses["loss"] if self.micro_batches == 1 else losses["loss"] * count

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        count, means = self.totals.gather()
        inputs = means.pop(INPUTS)
        scale = None if self.micro_batches == 1 else self.micro_batches / count.clamp(min=1)
        norm, skipped = clip_and_guard(optimizer, self.network, self.settings.clip, scale)
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)
        self.log("train/grad_norm", norm, batch_size=1)
        # A tensor, since Lightning would copy a number to the device, which waits for all earlier work.
        self.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"]), batch_size=1)
        self.skips.add(skipped, inputs > 0)
        # Waits for the device once per logged line, not once per step.
        due = (self.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or self.device.type == "cpu":
            self.skips.refuse(self.global_step, norm, means)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update()

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero and (summary := self.skips.summary()) is not None:
            log.warning(summary)

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
        # Batches are distributed to the ranks in turn.
        index = batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(seed_for(self.seed, "val", index, 0))
        with torch.compiler.set_stance("force_eager"):  # a few batches are not worth another compilation
            losses = self.losses(batch)
        self._validated.add(self.count(batch), losses)

    def on_validation_epoch_end(self) -> None:
        for name, value in self._validated.gather()[1].items():
            self.log(f"val/{name}", value, prog_bar=name == "loss", batch_size=1, sync_dist=True)

    # What a checkpoint holds besides Lightning's own.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["accumulated"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
        accumulated = self.trainer.accumulate_grad_batches
        recount(checkpoint, accumulated - checkpoint.get("accumulated", accumulated))


def recount(checkpoint: dict[str, Any], more: int) -> None:
    """Adds `more` batches per step to Lightning's counts; with stale counts it would resume in the middle of a step."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        for name in counts:
            counts[name] += more * checkpoint["global_step"]
