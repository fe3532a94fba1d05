"""The flow head: a small per-token MLP that turns noise into one latent token.

Two objectives for one network: flow matching (the default; rectified flow, arXiv 2209.03003, logit-normal times as in
arXiv 2403.03206, on a grid of 1,000) and DDPM (arXiv 2006.11239, as in MAR's diffusion loss, arXiv 2406.11838).
The head has two verbs, `loss` and `sample`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

from vidchat.model.graphs import CapturedLoops
from vidchat.registry import register
from vidchat.sinusoid import sinusoid

Number = TypeVar("Number", float, Tensor)

ROWS = 1024  # largest number of rows in a product that computes several steps at once
LEVELS = 1000  # noise levels in training: DDPM's steps, and as many times of the flow


@register("flow_head")
@dataclass(frozen=True)
class FlowShape:
    """Sizes and objective of the flow head.

    Attributes:
        width: Hidden width.
        blocks: Number of residual MLP blocks.
        draws: m, number of (time, noise) draws per training token: the head is cheap, the transformer is not.
        noises: Number of draws that share a time, and with it their modulations, two thirds of the head's operations;
            divides `draws`.
        objective: Training objective.
    """

    width: int
    blocks: int
    draws: int = 4
    noises: int = 1
    objective: Literal["flow", "ddpm"] = "flow"

    def __post_init__(self) -> None:
        if self.draws % self.noises:
            raise ValueError(f"noises ({self.noises}) must divide draws ({self.draws})")

    @property
    def times(self) -> int:
        """Number of different times per training token."""
        return self.draws // self.noises


class FlowBlock(nn.Module):
    """Residual MLP with an adaptive layer norm whose gate starts at zero (DiT, arXiv 2212.09748)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)
        return torch.addcmul(x, gate, self.mlp(torch.addcmul(shift, self.norm(x), 1 + scale)))


class TokenDenoiser(nn.Module):
    """Predicts a token's velocity (or noise) from the noisy token, the time and the condition. Its initial output is 0.

    Args:
        token_dim: D_v.
        condition_width: W, width of the condition.
        shape: Sizes of the head.
    """

    def __init__(self, token_dim: int, condition_width: int, shape: FlowShape) -> None:
        super().__init__()
        self.token = nn.Linear(token_dim, shape.width)
        self.time = nn.Sequential(nn.Linear(256, shape.width), nn.SiLU(), nn.Linear(shape.width, shape.width))
        self.condition = nn.Linear(condition_width, shape.width)
        self.blocks = nn.ModuleList(FlowBlock(shape.width) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width, elementwise_affine=False)
        self.modulation = nn.Linear(shape.width, 2 * shape.width)
        self.output = nn.Linear(shape.width, token_dim)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Returns predictions (N, D_v) for noisy tokens (N, D_v), times (N,) in [0, 1] and conditions (N, W)."""
        return self.predict(self.token(x), self.modulate(self.embed_times(time), self.condition(condition)))

    def embed_times(self, times: Tensor) -> Tensor:
        """Returns embeddings (n, width) of times (n,)."""
        return self.time(sinusoid(times * 1000, 256))

    def modulate(self, time: Tensor, condition: Tensor) -> list[Tensor]:
        """Returns the modulations of every block (..., 3 * width) and of the output (..., 2 * width).

        They are two thirds of the head's operations and independent of the token, so those of several steps can be
        computed in one product.

        Args:
            time: Embedded times (..., width).
            condition: Embedded conditions (N, width).
        """
        context = nn.functional.silu(time + condition)
        return [*(cast(FlowBlock, block).modulation(context) for block in self.blocks), self.modulation(context)]

    def predict(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Returns predictions (N, D_v) for embedded tokens (N, width) and the result of `modulate`."""
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.output(torch.addcmul(shift, self.norm(x), 1 + scale))

    def guided(self, x: Tensor, modulations: Sequence[Tensor], guidance: float) -> Tensor:
        """Returns guided predictions (N, D_v) in fp32.

        They are f(unconditional) + guidance * (f(conditional) - f(unconditional)). Both halves see the same noisy
        token. At scale 1 there is no second half.

        Args:
            x: Noisy tokens (N, D_v), all at one time.
            modulations: Modulations for N conditions; with guidance for 2N, conditional ones first.
            guidance: Scale of classifier-free guidance; 1 disables it.
        """
        token = self.token(x)
        if guidance == 1:
            return self.predict(token, modulations).float()
        conditional, unconditional = self.predict(token.repeat(2, 1), modulations).float().chunk(2)
        return unconditional + guidance * (conditional - unconditional)


class FlowHead(nn.Module):
    """Draws latent tokens given the spatial transformer's outputs at their positions.

    Args:
        token_dim: D_v.
        condition_width: W, width of the condition.
        shape: Sizes and objective.
    """

    def __init__(self, token_dim: int, condition_width: int, shape: FlowShape) -> None:
        super().__init__()
        self.token_dim, self.shape = token_dim, shape
        self.denoiser = TokenDenoiser(token_dim, condition_width, shape)
        # The cosine schedule of arXiv 2102.09672. Training and sampling build their own schedulers, which hold state.
        self._ddpm = {"num_train_timesteps": LEVELS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}

    def loss(self, target: Tensor, condition: Tensor) -> Tensor:
        """Returns the loss of each token, (N,) in fp32: the mean square over D_v values and m draws of (s, e).

        Flow: f(x_s, s, c) - (e - x) with x_s = (1 - s) x + s e, e ~ N(0, I) and s logit-normal. DDPM: f(x_t, t, c) - e.

        Args:
            target: (N, D_v) latent tokens.
            condition: (N, W) conditions.
        """
        times, device = self.shape.times, target.device
        target = target.float().repeat(times, 1)
        noise = torch.randn(self.shape.noises, *target.shape, device=device)
        grid = torch.arange(LEVELS, device=device) / LEVELS
        if self.shape.objective == "flow":
            level = (torch.randn(len(target), device=device).sigmoid() * LEVELS).long().clamp(max=LEVELS - 1)
            grid = grid + 0.5 / LEVELS
            time = grid[level].unsqueeze(1)
            noisy, expected = (1 - time) * target + time * noise, noise - target
        else:
            level = torch.randint(LEVELS, (len(target),), device=device)
            noisy, expected = DDPMScheduler(**self._ddpm).add_noise(target, noise, level), noise
        denoiser = self.denoiser
        # Every condition and every time is embedded once, however many draws share it.
        embedded = (
            nn.functional.embedding(level, denoiser.embed_times(grid))
            if len(level) > LEVELS
            else denoiser.embed_times(grid[level])
        )
        modulations = denoiser.modulate(embedded, denoiser.condition(condition).repeat(times, 1))
        predicted = denoiser.predict(denoiser.token(noisy), modulations).float()
        return (predicted - expected).square().mean(dim=(0, 2)).view(times, -1).mean(0)

    def sample(
        self,
        condition: Tensor,
        steps: int,
        guidance: float = 1.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draws latent tokens (N, D_v) in fp32.

        Args:
            condition: (N, W); with guidance (2N, W), conditional ones first.
            steps: Number of evaluations of the network: even for flow matching (`integrate`); for DDPM, the number of
                respaced ancestral steps.
            guidance: Scale of classifier-free guidance; 1 disables it.
            temperature: Scale of the initial noise.
            generator: Source of the noise.
            graphs: Captured loops; on CUDA the whole loop is then one launch (flow matching only, as DDPM draws noise
                at every step).
        """
        count = len(condition) if guidance == 1 else len(condition) // 2
        x = torch.randn(count, self.token_dim, generator=generator, device=condition.device) * temperature
        if self.shape.objective == "flow":
            if graphs is not None and x.is_cuda:
                return graphs.run_padded(self.integrate, x, condition, steps, guidance)
            return self.integrate(x, condition, steps, guidance)
        scheduler = DDPMScheduler(**self._ddpm)
        scheduler.set_timesteps(steps)
        for step, modulations in zip(
            scheduler.timesteps.tolist(),
            self._each_step(scheduler.timesteps.to(x.device) / LEVELS, condition),
            strict=True,
        ):
            predicted = self.denoiser.guided(x, modulations, guidance)
            x = scheduler.step(predicted, step, x, generator=generator).prev_sample
        return x

    def redraw(self, tokens: Tensor, condition: Tensor, level: Tensor, evaluations: int) -> Tensor:
        """Returns true tokens (N, D_v), noised to a level and denoised again (flow matching only).

        Args:
            tokens: (N, D_v).
            condition: (N, W).
            level: (N, 1) times s in (0, 1] that the tokens are noised to; at 1 nothing of them is left.
            evaluations: Number of evaluations of the network, even; see `integrate`.
        """
        if self.shape.objective != "flow":
            raise ValueError("objective.resample needs flow.objective=flow; set it to 0 for DDPM")
        embedded, ends = self.denoiser.condition(condition), flow_times(evaluations)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            modulations = self.denoiser.modulate(self.denoiser.embed_times(time.squeeze(1)), embedded)
            return self.denoiser.guided(x, modulations, guidance=1.0)

        x = (1 - level) * tokens + level * torch.randn_like(tokens)
        for start, end in itertools.pairwise(ends):
            step = level * (end - start)
            middle = x + step / 2 * velocity(x, level * start)
            x = x + step * velocity(middle, level * (start + end) / 2)
        return x

    def integrate(self, noise: Tensor, condition: Tensor, evaluations: int, guidance: float) -> Tensor:
        """Integrates noise (N, D_v) at s = 1 to tokens (N, D_v) at s = 0.

        A midpoint step takes two evaluations. With as many evaluations, Euler steps lose a sixth of a Gaussian's
        standard deviation (benchmarks/flow.py). The method makes no random draws and never waits for the device.

        Args:
            noise: (N, D_v).
            condition: (N, W); with guidance (2N, W), conditional ones first.
            evaluations: Number of evaluations of the network; their times are those of `flow_times`.
            guidance: Scale of classifier-free guidance; 1 disables it.

        Raises:
            ValueError: The number of evaluations is odd.
        """
        x, ends = noise, flow_times(evaluations)
        starts = flow_time(torch.arange(len(ends) - 1, -1, -1, device=x.device) / (len(ends) - 1))
        times = torch.stack([starts[:-1], starts[:-1].lerp(starts[1:], 0.5)], dim=1).flatten()
        predictions = self._each_step(times, condition)
        for start, end in itertools.pairwise(ends):
            step = end - start
            middle = x + step / 2 * self.denoiser.guided(x, next(predictions), guidance)
            x = x + step * self.denoiser.guided(middle, next(predictions), guidance)
        return x

    def _each_step(self, times: Tensor, condition: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yields the modulations for conditions (N, W) at each time (n,); those of a few steps are computed at once."""
        condition = self.denoiser.condition(condition)
        for steps in self.denoiser.embed_times(times).split(steps_at_once(len(condition))):
            yield from zip(*self.denoiser.modulate(steps.unsqueeze(1), condition), strict=True)


def flow_times(evaluations: int) -> list[float]:
    """Returns the ends of the midpoint steps, from 1 to 0, for a number of evaluations.

    Raises:
        ValueError: The number is odd or less than 2.
    """
    if evaluations < 2 or evaluations % 2:
        raise ValueError(f"flow_steps={evaluations} is not possible: a midpoint step takes two; give an even number")
    steps = evaluations // 2
    return [flow_time(step / steps) for step in range(steps, -1, -1)]


def flow_time(u: Number) -> Number:
    """Returns the time s for an evenly spaced u in [0, 1]: denser near the data, where narrow distributions form."""
    return u / (2 - u)


def steps_at_once(conditions: int) -> int:
    """Returns the number of steps whose modulations are computed in one product of at most `ROWS` rows.

    Products of few rows are slow, and larger ones gain nothing more.
    """
    return max(1, ROWS // conditions)
