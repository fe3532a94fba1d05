"""What every stage's LightningModule shares: from a batch's losses to moved weights."""

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
from vidchat.training.skips import INPUTS, Skips, absurd
from vidchat.training.skips import NotFiniteError as NotFiniteError  # what a run of this module may end with
from vidchat.training.totals import Totals

log = logging.getLogger(__name__)


class TrainingModule(L.LightningModule):
    """Trains `network` by its `loss`; a subclass says how the result is exported, or what other losses it has.

    Randomness is seeded for each micro-batch, the update is skipped when the gradient is not finite, and an average of
    the weights follows each update. Its state, with the optimizer's, the schedule's and the data position, is in the
    checkpoint: a run that stops and resumes is bit for bit the run that never stopped.

    A step's micro-batches, accumulated or on several ranks, are one large batch: each is weighted by its `count`, and
    draws by its place among all of them, so that two ranks are one that accumulates two batches.

    Args:
        network: What is trained, averaged and exported.
        optimizer: How.
        seed: Of everything random in training.

    Attributes:
        place: Optimizer step and this rank's micro-batch, both counted from 0.
        micro_batches: Micro-batches of one optimizer step, of all ranks together.
    """

    def __init__(self, network: nn.Module, optimizer: OptimizerSettings | None = None, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.settings = optimizer or OptimizerSettings()
        self.seed = seed
        self.ema = EMA(network, self.settings.ema_decay)
        self.place, self.micro_batches = (-1, 0), 1
        self.totals, self._validated = Totals(), Totals()
        self.skips = Skips(self.settings.patience)
        self._own: dict[str, Tensor] | None = None

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Returns scalars to log by name, each a mean over what `count` counts; `loss` is minimised.

        The micro-batches of one step share a seed: of each chunk they then predict as many tokens.
        """
        together = self.training and self.micro_batches > 1
        shared = seed_for(self.seed, "masked", self.place[0]) if together else None
        losses: dict[str, Tensor] = self.network.loss(batch, shared)  # type: ignore[operator]
        return losses

    def count(self, batch: Any) -> Tensor:
        """Scalar on the batch's device: of how many things its losses are means.

        Of a dictionary of tensors, its `count` if it has one, else its clips; of anything else, always 1.
        """
        if isinstance(batch, Mapping) and "count" in batch:
            return torch.as_tensor(batch["count"])
        clips = len(next(iter(batch.values()))) if isinstance(batch, Mapping) else 1
        return torch.full((), float(clips), device=self.device)

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes what was trained to a folder that stands for itself."""
        raise NotImplementedError

    # One step of training, in the order in which Lightning calls it.

    def on_train_start(self) -> None:
        # The weights are rank 0's since DDP has them; the average was taken before that.
        copy_from_first_rank(self.ema.average.values())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        step, micro = self.place
        self.place = (self.global_step, micro + 1 if step == self.global_step else 0)
        ranks: int = self.trainer.world_size
        self.micro_batches = ranks * self.trainer.accumulate_grad_batches
        seed_step(self.seed, self.place[0], self.place[1] * ranks + self.global_rank)
        losses, count = self.losses(batch), self.count(batch)
        self.totals.add(count, losses | {INPUTS: absurd(batch, self.device)})
        # Lightning and DDP take the mean of these; right before the update it becomes the mean over what is counted.
        return losses["loss"] if self.micro_batches == 1 else losses["loss"] * count

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        count, means = self.totals.gather_tokens()
        inputs = means.pop(INPUTS)
        scale = None if self.micro_batches == 1 else self.micro_batches / count.clamp(min=1)
        norm, skipped = clip_and_guard(optimizer, self.network, self.settings.clip, scale)
        for name, value in means.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss", batch_size=1)
        self.log("train/grad_norm", norm, batch_size=1)
        # A tensor here: Lightning would copy a number to the device, which waits for all work before it.
        self.log("train/lr", torch.tensor(optimizer.param_groups[0]["lr"]), batch_size=1)
        self.skips.add(skipped, inputs > 0)
        # Waiting for the device once per logged line, not once per step.
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
        # Batches are dealt out to the ranks in turn.
        place = batch_idx * self.trainer.world_size + self.global_rank
        torch.manual_seed(seed_for(self.seed, "val", place, 0))
        with torch.compiler.set_stance("force_eager"):  # a few batches are not worth another compilation
            losses = self.losses(batch)
        self._validated.add(self.count(batch), losses)

    def on_validation_epoch_end(self) -> None:
        for name, value in self._validated.gather_tokens()[1].items():
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
    """Counts Lightning's batches anew, with so many more to each step: or it would think itself within a step."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        for name in counts:
            counts[name] += more * checkpoint["global_step"]
