"""The flow head: a small per-token MLP that turns noise into one latent token.

Two heads of one network: flow matching (the default; rectified flow, arXiv 2209.03003, logit-normal times as in
arXiv 2403.03206, on a grid of 1,000) and DDPM (arXiv 2006.11239, as MAR's diffusion loss, arXiv 2406.11838). Both
have two verbs, `loss` and `sample`.
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

ROWS = 1024  # of a product at most, where steps are computed together
LEVELS = 1000  # noise levels of training: DDPM's steps, and as many times of the flow, so fine that nothing is lost


@register("flow_head")
@dataclass(frozen=True)
class FlowShape:
    """Sizes of the head.

    Attributes:
        width: Hidden values.
        blocks: Residual MLP blocks.
        draws: m, (time, noise) draws per training token: the head is cheap, the transformer is not.
        noises: How many of the m draws share a time, and with it their modulations, two thirds of the head's
            operations; divides `draws`.
        objective: What it learns.
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
        """Different times per training token."""
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
    """Predicts a token's velocity (or noise) from the noisy token, the time and the condition. Zero at first."""

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
        """(N, D_v) from noisy tokens (N, D_v), times (N,) in [0, 1] and conditions (N, W)."""
        return self.predict(self.token(x), self.modulate(self.embed_times(time), self.condition(condition)))

    def embed_times(self, times: Tensor) -> Tensor:
        """(n, width) from times (n,)."""
        return self.time(sinusoid(times * 1000, 256))

    def modulate(self, time: Tensor, condition: Tensor) -> list[Tensor]:
        """What every block, and the output, is shifted and scaled by, from embedded times and conditions.

        Two thirds of the head's operations, and none knows the token, so those of several steps can be one product.
        """
        context = nn.functional.silu(time + condition)
        return [*(cast(FlowBlock, block).modulation(context) for block in self.blocks), self.modulation(context)]

    def predict(self, x: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """From embedded tokens (N, width) and what `modulate` gives."""
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            x = block(x, modulation)
        shift, scale = modulations[-1].chunk(2, dim=-1)
        return self.output(torch.addcmul(shift, self.norm(x), 1 + scale))

    def guided(self, x: Tensor, modulations: Sequence[Tensor], guidance: float) -> Tensor:
        """The prediction for (N, D_v) tokens at one time, in fp32: f(free) + guidance * (f(conditioned) - f(free)).

        Both halves see the same noisy token. At scale 1 there is no second half and nothing is mixed.

        Args:
            x: (N, D_v).
            modulations: Of N conditions, with guidance of 2N, conditioned ones first.
            guidance: Scale; 1 is none.
        """
        token = self.token(x)
        if guidance == 1:
            return self.predict(token, modulations).float()
        conditioned, free = self.predict(token.repeat(2, 1), modulations).float().chunk(2)
        return free + guidance * (conditioned - free)


class FlowHead(nn.Module):
    """Draws a token's latent given the spatial transformer's output at its place.

    Args:
        token_dim: D_v.
        condition_width: W, width of the condition.
        shape: Sizes and objective.
    """

    def __init__(self, token_dim: int, condition_width: int, shape: FlowShape) -> None:
        super().__init__()
        self.token_dim, self.shape = token_dim, shape
        self.denoiser = TokenDenoiser(token_dim, condition_width, shape)
        # The cosine schedule of arXiv 2102.09672; no table of it is shared between training and sampling.
        self._ddpm = {"num_train_timesteps": LEVELS, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}

    def loss(self, target: Tensor, condition: Tensor) -> Tensor:
        """Loss of each token, (N,), in fp32: the mean square over D_v values and m draws of (s, e), e ~ N(0, I).

        Flow: f(x_s, s, c) - (e - x) with x_s = (1 - s) x + s e and s logit-normal. DDPM: f(x_t, t, c) - e.

        Args:
            target: (N, D_v) latent tokens.
            condition: (N, W).
        """
        times, device = self.shape.times, target.device
        target = target.float().repeat(times, 1)
        noise = torch.randn(self.shape.noises, *target.shape, device=device)
        grid = torch.arange(LEVELS, device=device) / LEVELS
        if self.shape.objective == "flow":
            level = (torch.randn(len(target), device=device).sigmoid() * LEVELS).long().clamp(max=LEVELS - 1)
            grid = grid + 0.5 / LEVELS
            time = grid[level].unsqueeze(1)
            mixed, wanted = (1 - time) * target + time * noise, noise - target
        else:
            level = torch.randint(LEVELS, (len(target),), device=device)
            mixed, wanted = DDPMScheduler(**self._ddpm).add_noise(target, noise, level), noise
        denoiser = self.denoiser
        # Of conditions and times, each is embedded once, however often it was drawn.
        embedded = (
            nn.functional.embedding(level, denoiser.embed_times(grid))
            if len(level) > LEVELS
            else denoiser.embed_times(grid[level])
        )
        modulations = denoiser.modulate(embedded, denoiser.condition(condition).repeat(times, 1))
        predicted = denoiser.predict(denoiser.token(mixed), modulations).float()
        return (predicted - wanted).square().mean(dim=(0, 2)).view(times, -1).mean(0)

    def sample(
        self,
        condition: Tensor,
        steps: int,
        guidance: float = 1.0,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        graphs: CapturedLoops | None = None,
    ) -> Tensor:
        """Draw latent tokens (N, D_v) in fp32.

        Args:
            condition: (N, W); with guidance (2N, W), conditioned ones first.
            steps: Evaluations of the network: an even number of `integrate`'s, or respaced ancestral DDPM's.
            guidance: Scale of classifier-free guidance; 1 is none.
            temperature: Scale of the noise that it starts from.
            generator: Source of the noise.
            graphs: With these, on CUDA, the whole loop is one launch (flow matching; DDPM draws noise on the way).
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

    def integrate(self, noise: Tensor, condition: Tensor, evaluations: int, guidance: float) -> Tensor:
        """Midpoint steps from noise (N, D_v) at s = 1 to tokens at s = 0, each of two evaluations; see `flow_times`.

        Second order: at as many evaluations, Euler's steps lose a sixth of a Gaussian's spread (benchmarks/flow.py).
        Draws nothing and waits for nothing.

        Raises:
            ValueError: the number of evaluations is odd.
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
        """Modulations of conditions (N, W) at each of the times, those of a few steps computed at once."""
        condition = self.denoiser.condition(condition)
        for some in self.denoiser.embed_times(times).split(steps_at_once(len(condition))):
            yield from zip(*self.denoiser.modulate(some.unsqueeze(1), condition), strict=True)


def flow_times(evaluations: int) -> list[float]:
    """Ends of the midpoint steps, from 1 to 0, that take this many evaluations.

    Raises:
        ValueError: the number is odd or less than 2.
    """
    if evaluations < 2 or evaluations % 2:
        raise ValueError(f"flow_steps={evaluations} is not possible: a midpoint step takes two; give an even number")
    steps = evaluations // 2
    return [flow_time(step / steps) for step in range(steps, -1, -1)]


def flow_time(place: Number) -> Number:
    """The time s at an evenly spaced place in [0, 1]: denser near the data, where narrow distributions are decided."""
    return place / (2 - place)


def steps_at_once(conditions: int) -> int:
    """Steps whose modulations are one product: as many as keep it small. Few rows are slow; many gain nothing."""
    return max(1, ROWS // conditions)
