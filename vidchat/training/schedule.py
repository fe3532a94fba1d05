"""AdamW as in MAR and NOVA, the learning rate schedule, and clipping that skips updates that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimizer and its schedule.

    Attributes:
        lr: Peak learning rate.
        steps: Optimizer steps of the run, at whose end the cosine ends.
        warmup: Steps of linear warm-up.
        schedule: Schedule after the warm-up.
        final: Final learning rate of the cosine as a share of `lr`.
        betas: Betas of AdamW; 0.9 and 0.95 as in MAR.
        weight_decay: Weight decay of linear maps and convolutions; norms, biases and embeddings have none.
        no_decay: Names of submodules without decay, e.g. `flow_head` (MAR excludes its diffusion MLP).
        clip: Maximum norm of the gradient over all parameters.
        ema_decay: Decay of the average, see `vidchat.training.ema.EMA`.
        patience: Number of consecutive updates that may be skipped because their gradient is not finite.
    """

    lr: float = 3e-4
    steps: int = 1000
    warmup: int = 50
    schedule: Literal["cosine", "constant"] = "cosine"
    final: float = 0.05
    betas: Sequence[float] = (0.9, 0.95)
    weight_decay: float = 0.02
    no_decay: Sequence[str] = ()
    clip: float = 1.0
    ema_decay: float = 0.999
    patience: int = 5

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"optimizer.schedule must be 'cosine' or 'constant', got '{self.schedule}'")
        if self.steps < 1 or self.lr <= 0 or self.clip <= 0:
            raise ValueError(
                f"steps, lr and clip must be positive, got {self.steps}, {self.lr} and {self.clip}; check stage="
            )

    def factor(self, step: int) -> float:
        """Returns the learning rate of optimizer step `step` (from 0), as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


def parameter_groups(network: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Returns the trainable parameters in two groups, with weight decay and without."""
    decayed = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, _MAPS) and not set(name.split(".")) & set(settings.no_decay)
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, value in network.named_parameters():
        if value.requires_grad:
            groups[name in decayed].append(value)
    return [
        {"params": params, "weight_decay": settings.weight_decay if decay else 0.0}
        for decay, params in groups.items()
        if params
    ]


class Schedule(LambdaLR):
    """A learning rate that depends on the settings and the step only, also after a checkpoint was loaded.

    It takes only the step from a checkpoint, so a run that resumes with another rate, or with more steps, follows the
    new schedule from its next step on.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [base * self.lr_lambdas[0](self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def make_optimizer(network: nn.Module, settings: OptimizerSettings) -> tuple[AdamW, LambdaLR]:
    """Returns fused AdamW, which can skip an update without a host synchronisation, and its schedule.

    Both keep `settings` when they load a checkpoint, and take only the moments and the step from it.
    """
    first, second = settings.betas
    optimizer = AdamW(parameter_groups(network, settings), lr=settings.lr, betas=(first, second), fused=True)
    optimizer.register_load_state_dict_pre_hook(_keep_settings)
    return optimizer, Schedule(optimizer, lambda step: settings.factor(step))


def _keep_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's state with the optimizer's own rate, decay and betas."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = [{**group, **settings} for group, settings in zip(state["param_groups"], own, strict=False)]
    return state if len(own) != len(state["param_groups"]) else {**state, "param_groups": groups}


def clip_and_guard(
    optimizer: AdamW, network: nn.Module, clip: float, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scales and clips the gradient, and makes the optimizer skip this update if it is not finite.

    A NaN noticed after the optimizer's step is noticed too late: the last good weights are gone. The fused AdamW reads
    `found_inf` on the device, so the host does not wait.

    Args:
        optimizer: Optimizer of the network.
        network: Network with the gradient.
        clip: Maximum norm of the scaled gradient.
        scale: Scalar tensor on the device that multiplies the gradient; `None` for 1.

    Returns:
        The scaled norm before clipping, and 1.0 if this update is skipped, else 0.0: scalar tensors on the device.
    """
    parameters = [value for value in network.parameters() if value.grad is not None]
    if scale is None:
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    else:
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        torch._foreach_mul_(gradients, scale * (clip / (norm + 1e-6)).clamp(max=1))
    skipped = (~torch.isfinite(norm)).to(torch.float32)
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    return norm, skipped
