from __future__ import annotations

import torch

from vidchat.model.rotary import rotary_angles, rotate

HEAD, THETA = 16, 100.0


def by_hand(x: torch.Tensor, position: tuple[float, float, float]) -> torch.Tensor:
    """Rotates the pairs (i, i + half) of one vector as complex numbers, by frequency times position on their axis."""
    half = HEAD // 2
    rotated = torch.empty_like(x)
    for i in range(half):
        time, row, col = position
        angle = (time, row, time, col)[i % 4] * THETA ** (-i / half)
        pair = torch.complex(x[i], x[i + half]) * torch.polar(torch.tensor(1.0), torch.tensor(angle))
        rotated[i], rotated[i + half] = pair.real, pair.imag
    return rotated


def test_each_axis_rotates_its_own_frequencies():
    """Time has every second frequency, row and column a quarter each, from fast to slow."""
    x = torch.randn(1, 1, 1, HEAD)
    for position in [(3.5, 0, 0), (0, 2, 0), (0, 0, 2), (7, 1, 4)]:
        ours = rotate(x, rotary_angles(torch.tensor([[position]]), HEAD, THETA))
        torch.testing.assert_close(ours[0, 0, 0], by_hand(x[0, 0, 0], position), atol=1e-5, rtol=1e-5)


def test_only_differences_of_positions_matter():
    query, key = torch.randn(2, 1, 1, 1, HEAD)
    first, second, shift = torch.tensor([[[5.0, 1, 2]]]), torch.tensor([[[2.0, 3, 0]]]), torch.tensor([40.0, 7, 3])

    def score(a, b):
        return (rotate(query, rotary_angles(a, HEAD, THETA)) * rotate(key, rotary_angles(b, HEAD, THETA))).sum()

    torch.testing.assert_close(score(first, second), score(first + shift, second + shift), atol=1e-4, rtol=1e-4)
