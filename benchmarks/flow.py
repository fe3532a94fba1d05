"""Accuracy of solvers and time grids for the flow head with few evaluations, on known distributions.

    python benchmarks/flow.py [--evaluations 4 8 12 24] [--temperature 1.0 0.5]

The head is replaced by the exact velocity E[e - x | x_s] of Gaussians and their mixtures, so that the error is the
solver's alone. Every cell is the standard deviation of the samples, over that of exact integration from the same noise;
in brackets, the root mean square distance to exact integration, over the same deviation. `product` is
`FlowHead.integrate`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vidchat.model.flow import FlowHead, FlowShape, flow_time

Velocity = Callable[[Tensor, float], Tensor]
Solver = Callable[[Tensor, Velocity, list[float]], Tensor]

# Share, mean and standard deviation of each component.
DISTRIBUTIONS = {
    "N(0, 1)": [(1.0, 0.0, 1.0)],
    "N(2, 0.5²)": [(1.0, 2.0, 0.5)],
    "N(2, 0.2²)": [(1.0, 2.0, 0.2)],
    "N(2, 0.05²)": [(1.0, 2.0, 0.05)],
    "two": [(0.3, -1.0, 0.15), (0.7, 1.0, 0.3)],
    "three": [(0.2, -1.5, 0.05), (0.3, 0.0, 0.1), (0.5, 1.2, 0.2)],
}


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians and its exact velocity."""

    components: list[tuple[float, float, float]]

    def velocity(self, x: Tensor, time: float | Tensor) -> Tensor:
        """Returns E[e - x_0 | x_s = x] at time s, in the shape of x."""
        share, mean, std = torch.tensor(self.components, dtype=x.dtype).T
        off, variance = x.unsqueeze(-1) - (1 - time) * mean, ((1 - time) * std) ** 2 + time**2
        weight = (share.log() - variance.log() / 2 - off**2 / (2 * variance)).softmax(-1)
        return (weight * ((time - (1 - time) * std**2) / variance * off - mean)).sum(-1)


def euler(x: Tensor, velocity: Velocity, times: list[float]) -> Tensor:
    for start, end in itertools.pairwise(times):
        x = x + (end - start) * velocity(x, start)
    return x


def heun(x: Tensor, velocity: Velocity, times: list[float]) -> Tensor:
    """Integrates by Heun's method; the last step is Euler's, as in EDM (arXiv 2206.00364)."""
    for start, end in itertools.pairwise(times):
        first = velocity(x, start)
        second = first if end == 0 else velocity(x + (end - start) * first, end)
        x = x + (end - start) * (first + second) / 2
    return x


def midpoint(x: Tensor, velocity: Velocity, times: list[float]) -> Tensor:
    for start, end in itertools.pairwise(times):
        middle = x + (end - start) / 2 * velocity(x, start)
        x = x + (end - start) * velocity(middle, (start + end) / 2)
    return x


def adams_bashforth(x: Tensor, velocity: Velocity, times: list[float]) -> Tensor:
    """Integrates by the two-step method: one evaluation per step, which uses the slope of the last step again."""
    before, length = None, 1.0
    for start, end in itertools.pairwise(times):
        slope, step = velocity(x, start), end - start
        x = x + step * (slope if before is None else slope + step / length / 2 * (slope - before))
        before, length = slope, step
    return x


# Each solver with its number of steps for a number of evaluations.
SOLVERS: dict[str, tuple[Solver, Callable[[int], int]]] = {
    "Euler": (euler, lambda count: count),
    "Heun": (heun, lambda count: (count + 1) // 2),
    "Adams-Bashforth": (adams_bashforth, lambda count: count),
    "midpoint": (midpoint, lambda count: count // 2),
}
GRIDS: dict[str, Callable[[float], float]] = {"uniform": lambda step: step, "u/(2-u)": flow_time}


class _Known(nn.Module):
    """A denoiser that returns the exact velocity."""

    condition = nn.Identity()

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def embed_times(self, times: Tensor) -> Tensor:
        return times[:, None]

    def modulate(self, time: Tensor, condition: Tensor) -> list[Tensor]:
        return [time.expand(len(time), len(condition), 1)]

    def guided(self, x: Tensor, modulations: list[Tensor], guidance: float) -> Tensor:
        return self.mixture.velocity(x, modulations[0].unsqueeze(-1).to(x.dtype))


def product(mixture: Mixture, noise: Tensor, evaluations: int) -> Tensor:
    """Returns the samples of the flow head with the exact velocity, from noise (n,)."""
    head = FlowHead(1, 1, FlowShape(width=8, blocks=1))
    head.denoiser = _Known(mixture)
    return head.integrate(noise[:, None], torch.zeros(len(noise), 1), evaluations, 1.0)[:, 0]


def format_cell(drawn: Tensor, exact: Tensor) -> str:
    spread = exact.std()
    return f"{drawn.std() / spread:.2f} ({(drawn - exact).square().mean().sqrt() / spread:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[4, 8, 12, 24])
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    options = parser.parse_args()
    quantiles = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    normal = torch.special.ndtri(quantiles)  # no cell depends on random numbers
    for temperature in options.temperature:
        print(f"\n| temperature {temperature:g} | evaluations | {' | '.join(DISTRIBUTIONS)} |")
        print("| --- " * (len(DISTRIBUTIONS) + 2) + "|")
        mixtures, noise = [Mixture(components) for components in DISTRIBUTIONS.values()], temperature * normal
        fine = [flow_time(step / 1000) for step in range(1000, -1, -1)]
        exact = [midpoint(noise, mixture.velocity, fine) for mixture in mixtures]
        for count in options.evaluations:
            for name, (solver, steps) in SOLVERS.items():
                for grid, warp in GRIDS.items():
                    times = [warp(step / steps(count)) for step in range(steps(count), -1, -1)]
                    drawn = [solver(noise, mixture.velocity, times) for mixture in mixtures]
                    cells = [format_cell(*pair) for pair in zip(drawn, exact, strict=True)]
                    print(f"| {name}, {grid} | {count} | {' | '.join(cells)} |")
            own = [product(mixture, noise, count) for mixture in mixtures]
            print(f"| product | {count} | {' | '.join(format_cell(*pair) for pair in zip(own, exact, strict=True))} |")


if __name__ == "__main__":
    main()
