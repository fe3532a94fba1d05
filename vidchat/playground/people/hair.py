"""Hair: what lies behind the head, what lies over the forehead, and beards.

All coordinates are shares of the face's half width and half height: (0, 0) is the middle of the face, (0, 1) the chin.
"""

from __future__ import annotations

import numpy as np

from vidchat.playground.people.canvas import Brush, Colour, Points, curve, darker, lighter, mix
from vidchat.playground.people.head import Head

Line = tuple[tuple[float, float], ...]

# Hairlines from the left temple to the right one.
ARCH: Line = ((-0.93, -0.10), (-0.84, -0.44), (-0.52, -0.62), (0.0, -0.68), (0.52, -0.62), (0.84, -0.44), (0.93, -0.10))
SIDE: Line = (
    (-0.93, -0.10), (-0.86, -0.42), (-0.56, -0.70), (-0.42, -0.76), (0.05, -0.52), (0.62, -0.44), (0.93, -0.10),
)  # fmt: skip
FRINGE: Line = (
    (-0.95, 0.05), (-0.88, -0.38), (-0.60, -0.46), (-0.30, -0.41), (0.0, -0.47), (0.30, -0.41), (0.60, -0.46),
    (0.88, -0.38), (0.95, 0.05),
)  # fmt: skip
CENTRE: Line = (
    (-0.98, 0.25), (-0.90, -0.20), (-0.58, -0.58), (0.0, -0.86), (0.58, -0.58), (0.90, -0.20), (0.98, 0.25),
)  # fmt: skip
SWEPT: Line = (
    (-0.97, 0.18), (-0.90, -0.22), (-0.66, -0.62), (-0.35, -0.80), (0.20, -0.46), (0.80, -0.30), (0.98, 0.18),
)  # fmt: skip
BROW_HIGH: Line = ((-0.95, -0.12), (-0.70, -0.40), (0.0, -0.50), (0.70, -0.40), (0.95, -0.12))

# Style: hairline, side and top of the cap (shares of the face), and how much its lower ends go down.
CAPS: dict[str, tuple[Line, float, float, float]] = {
    "short": (ARCH, 1.06, 1.13, 0.02),
    "side": (SIDE, 1.07, 1.18, 0.02),
    "quiff": (ARCH, 1.04, 1.12, 0.02),
    "curly": (ARCH, 1.02, 1.08, 0.02),
    "long": (CENTRE, 1.09, 1.15, 0.30),
    "waves": (SWEPT, 1.11, 1.18, 0.25),
    "bob": (FRINGE, 1.12, 1.17, 0.20),
    "bun": (ARCH, 1.06, 1.12, 0.04),
    "pony": (SWEPT, 1.06, 1.13, 0.12),
    "afro": (ARCH, 1.10, 1.20, 0.05),
    "bowl": (FRINGE, 1.11, 1.18, 0.10),
    "pigtails": (CENTRE, 1.07, 1.14, 0.05),
    "tuft": (ARCH, 1.03, 1.09, 0.00),
    "spiky": (ARCH, 1.04, 1.06, 0.02),
}


def draw_back_hair(brush: Brush, head: Head) -> None:
    """What lies behind the head: long hair, buns, tails, clouds of curls."""
    colour = darker(head.identity.hair, 0.16)
    style = head.identity.style
    if style == "long":
        right = curve([(0.0, -1.12), (0.8, -0.95), (1.16, -0.2), (1.20, 0.6), (1.32, 1.25), (1.18, 1.72), (0.55, 1.80)])
        _fill(brush, head, _both(right), colour)
    elif style == "waves":
        _bumps(brush, head, [(s * x, v, r) for s in (-1, 1) for x, v, r in WAVES], colour)
        _fill(brush, head, _both(curve([(0.0, -1.1), (0.9, -0.8), (1.05, 0.4), (1.0, 1.3), (0.0, 1.3)])), colour)
    elif style == "bob":
        _fill(
            brush,
            head,
            _both(curve([(0.0, -1.1), (0.95, -0.8), (1.18, 0.0), (1.24, 0.62), (1.0, 0.86), (0.3, 0.8)])),
            colour,
        )
    elif style == "bun":
        _bumps(brush, head, [(0.0, -1.22, 0.40)], colour)
        _bumps(brush, head, [(-0.08, -1.28, 0.26)], mix(colour, lighter(head.identity.hair, 0.2), 0.6))
    elif style == "pony":
        tail = curve(
            [
                (0.5, -0.9),
                (1.25, -0.85),
                (1.58, -0.1),
                (1.42, 0.75),
                (1.62, 1.15),
                (1.12, 0.95),
                (1.12, 0.1),
                (0.9, -0.4),
            ]
        )
        _fill(brush, head, tail, colour)
        _bumps(brush, head, [(0.98, -0.72, 0.13)], head.identity.accent)
    elif style == "afro":
        ring = np.linspace(np.pi * 0.86, np.pi * 2.14, 15)
        _bumps(
            brush, head, [(1.12 * np.cos(a), -0.22 + 0.98 * np.sin(a), 0.36) for a in ring] + [(0, -0.5, 1.0)], colour
        )
    elif style == "pigtails":
        for side in (-1, 1):
            _bumps(
                brush, head, [(side * 1.24, 0.02, 0.30), (side * 1.34, 0.34, 0.25), (side * 1.34, 0.62, 0.15)], colour
            )
            _bumps(brush, head, [(side * 1.04, -0.16, 0.12)], head.identity.accent)


WAVES = (
    (1.02, -0.5, 0.26),
    (1.14, -0.08, 0.28),
    (1.16, 0.36, 0.30),
    (1.20, 0.80, 0.30),
    (1.14, 1.22, 0.32),
    (0.95, 1.5, 0.30),
)


def draw_front_hair(brush: Brush, head: Head) -> None:
    """What lies over the forehead, with a band of light; or a hat; or nothing but a shine."""
    identity, hair = head.identity, head.identity.hair
    style = identity.style
    if style == "bald":
        _bumps(brush, head, [(-0.34, -0.70, 0.11)], lighter(identity.skin, 0.5))
        return
    if style == "beanie":
        _beanie(brush, head)
        return
    line, side, top, low = CAPS[style]
    crown = _crown(side, top, low)
    _fill(brush, head, np.concatenate([crown, _hairline(head, line)]), hair)
    _TOPS.get(style, _no_top)(brush, head, hair)
    _shine(brush, head, side, top, hair)


def draw_beard(brush: Brush, head: Head) -> None:
    """A beard along the jaw, a goatee, or a moustache; the mouth is drawn over it."""
    identity, colour = head.identity, darker(head.identity.hair, 0.08)
    if identity.beard == "none":
        return
    if identity.beard == "full":
        jaw = head.contour[: len(head.contour) // 2 + 1] * np.array([1.015, 1.0])
        top = [(-0.80, 0.16), (-0.66, 0.44), (-0.34, 0.47), (0.0, 0.44), (0.34, 0.47), (0.66, 0.44), (0.80, 0.16)]
        inner = np.array([head.at(u, v) for u, v in curve(np.array(top))])
        brush.fill(np.concatenate([jaw, inner]), colour)
        return
    x, y = head.at(0.0, 0.47)
    half = identity.mouth
    edge = [(-1.15, 0.022), (-0.6, -0.012), (0.0, -0.004), (0.6, -0.012), (1.15, 0.022), (0.0, 0.018)]
    hump = curve([(x + half * u, y + v) for u, v in edge], closed=True)
    brush.fill(hump, colour)
    if identity.beard == "goatee":
        chin = head.contour[len(head.contour) // 4, 1]
        brush.ellipse(x * 0.6, chin - 0.022, half * 0.62, 0.036, colour)


def _crown(side: float, top: float, low: float) -> Points:
    """The cap's outer edge from the right temple over the top to the left one."""
    angle = np.linspace(0.0, np.pi, 25)
    c = np.cos(angle)
    return np.stack([side * np.sign(c) * np.abs(c) ** 0.85, low - (top + low) * np.sin(angle)], axis=1)


def _hairline(head: Head, line: Line) -> Points:
    """The hairline, its middle moved by turn and nod."""
    points = curve(np.array(line))
    inside = (1 - np.abs(points[:, :1]) ** 2).clip(0, 1)
    return points + inside * np.array([[head.dx / head.identity.width, head.dy / head.identity.height]])


def _shine(brush: Brush, head: Head, side: float, top: float, hair: Colour) -> None:
    angle = np.linspace(np.pi * 0.56, np.pi * 0.86, 12)
    thick = 0.085 * np.sin(np.linspace(0.0, np.pi, 12))
    outer = np.stack([side * 0.80 * np.cos(angle), -top * 0.88 * np.sin(angle)], axis=1)
    inner = np.stack([side * 0.78 * np.cos(angle), -top * (0.88 - thick) * np.sin(angle)], axis=1)
    _fill(brush, head, np.concatenate([outer, inner[::-1]]), lighter(hair, 0.26))


def _no_top(brush: Brush, head: Head, hair: Colour) -> None:
    """Most styles are a cap and no more."""


def _quiff(brush: Brush, head: Head, hair: Colour) -> None:
    edge = [(-0.86, -0.55), (-0.95, -1.0), (-0.45, -1.34), (0.25, -1.42), (0.78, -1.20), (0.96, -0.6), (0.4, -0.66)]
    top = curve([*edge, (0.0, -0.60), (-0.5, -0.62)], closed=True)
    _fill(brush, head, top, hair)


def _curls(brush: Brush, head: Head, hair: Colour) -> None:
    ring = np.linspace(np.pi * 1.02, np.pi * 1.98, 9)
    spots = [(1.00 * np.cos(a), -0.25 + 0.86 * np.sin(a), 0.26) for a in ring]
    _bumps(brush, head, spots, hair)
    _bumps(brush, head, [(-0.5, -0.66, 0.20), (-0.16, -0.72, 0.22), (0.2, -0.70, 0.21), (0.54, -0.64, 0.20)], hair)
    _bumps(brush, head, [(-0.55, -0.98, 0.08), (0.02, -1.08, 0.09), (0.48, -0.98, 0.07)], lighter(hair, 0.16))


def _afro_top(brush: Brush, head: Head, hair: Colour) -> None:
    ring = np.linspace(np.pi * 1.06, np.pi * 1.94, 9)
    _bumps(brush, head, [(0.98 * np.cos(a), -0.34 + 0.66 * np.sin(a), 0.27) for a in ring], hair)


def _spikes(brush: Brush, head: Head, hair: Colour) -> None:
    angle = np.linspace(np.pi * 1.04, np.pi * 1.96, 15)
    reach = np.where(np.arange(15) % 2, 1.34, 1.02)
    crown = np.stack([reach * np.cos(angle) * 0.96, -0.12 + reach * np.sin(angle)], axis=1)
    _fill(brush, head, crown, hair)
    for u in (-0.5, -0.1, 0.32):
        _fill(brush, head, np.array([(u - 0.2, -0.70), (u + 0.24, -0.72), (u - 0.04, -0.46)]), hair)


def _tuft(brush: Brush, head: Head, hair: Colour) -> None:
    for lean in (-0.30, 0.0, 0.28):
        _fill(brush, head, curve([(-0.16, -1.0), (lean - 0.04, -1.42), (lean + 0.06, -1.42), (0.16, -1.0)]), hair)
    _fill(brush, head, np.array([(-0.28, -0.72), (0.30, -0.74), (0.10, -0.48)]), hair)


_TOPS = {"quiff": _quiff, "curly": _curls, "afro": _afro_top, "spiky": _spikes, "tuft": _tuft}


def _beanie(brush: Brush, head: Head) -> None:
    """A knitted hat with a folded brim and a bobble."""
    knit = head.identity.accent
    _fill(brush, head, np.concatenate([_crown(1.05, 1.0, -0.05), _hairline(head, ARCH)]), head.identity.hair)
    _bumps(brush, head, [(0.0, -1.42, 0.20)], lighter(knit, 0.5))
    _fill(brush, head, np.concatenate([_crown(1.10, 1.34, -0.42), [(-1.1, -0.42), (1.1, -0.42)]]), knit)
    brim = _hairline(head, BROW_HIGH)
    upper = brim + np.array([0.0, -0.30])
    band = np.concatenate([brim * np.array([1.17, 1.0]), upper[::-1] * np.array([1.16, 1.0])])
    _fill(brush, head, band, darker(knit, 0.12))
    for u in (-0.75, -0.38, 0.0, 0.38, 0.75):
        _fill(
            brush,
            head,
            np.array([(u - 0.02, -0.80), (u + 0.02, -0.80), (u + 0.02, -0.52), (u - 0.02, -0.52)]),
            darker(knit, 0.26),
        )


def _both(right: Points) -> Points:
    """A shape from its right half, top to bottom."""
    return np.concatenate([right, right[::-1] * np.array([-1.0, 1.0])])


def _fill(brush: Brush, head: Head, shape: Points, colour: Colour) -> None:
    """Fill a shape given in shares of the face."""
    size = np.array([head.identity.width, head.identity.height])
    brush.fill(shape * size + np.array([0.0, head.y]), colour)


def _bumps(brush: Brush, head: Head, spots: list[tuple[float, float, float]], colour: Colour) -> None:
    """Discs at (u, v) with a radius in half widths of the face."""
    for u, v, radius in spots:
        r = radius * head.identity.width
        brush.ellipse(u * head.identity.width, head.y + v * head.identity.height, r, r, colour)
