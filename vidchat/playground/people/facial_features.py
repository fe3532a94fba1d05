"""The parts of a face that speak, see and feel: mouth, nose, eyes, brows, cheeks, and glasses before them."""

from __future__ import annotations

import numpy as np

from vidchat.playground.people.canvas import Brush, Colour, Points, curve, darker, ellipse, lighter, mix
from vidchat.playground.people.head import Head

GAP = 0.098
"""Height of a mouth opened to 1, in unit coordinates."""


def draw_mouth(brush: Brush, head: Head) -> None:
    """Lips around a gap as high as the pose's opening, with teeth above and the tongue below."""
    identity, pose, feeling = head.identity, head.pose, head.feeling
    x0, y0 = head.at(0.0, 0.60)
    x = np.linspace(-1.0, 1.0, 23)
    half = identity.mouth * (
        1 + 0.22 * max(feeling.smile, 0.0) + 0.16 * pose.width - 0.16 * pose.mouth - 0.2 * feeling.round
    )
    gap = GAP * pose.mouth * (1 - np.abs(x) ** 2.4) ** 0.7
    middle = y0 - feeling.smile * 0.034 * (x**2 - 0.45)
    top, low = middle - 0.25 * gap, middle + 0.75 * gap
    x_abs = x0 + half * x
    lip = _lip_colour(head)
    bow = 1 - 0.25 * np.exp(-((x / 0.22) ** 2))
    upper = top - identity.lips * (1 - np.abs(x) ** 2.2) * bow
    lower = low + 1.25 * identity.lips * (1 - np.abs(x) ** 2.2)
    brush.fill(_between(x_abs, upper, lower), lip)
    inner = _between(x_abs, top, low)
    if pose.mouth < 0.06:
        brush.stroke(np.stack([x_abs, middle], axis=1), 0.013, darker(lip, 0.62), ends=0.5)
        return
    brush.fill(inner, (86, 26, 36))
    tongue = np.maximum(top, low - GAP * 0.42 * pose.mouth * np.clip(1 - (x / 0.72) ** 2, 0.0, 1.0))
    brush.fill(_between(x_abs, tongue, low), (222, 104, 104))
    teeth = np.minimum(low, top + 0.024 * np.clip(1 - np.abs(x / 0.92) ** 4, 0.0, 1.0))
    brush.fill(_between(x_abs, top, teeth), (252, 248, 240))


def draw_nose(brush: Brush, head: Head) -> None:
    """A soft bulb with a highlight and a shadow under it."""
    size, skin = head.identity.nose, head.identity.skin
    x, y = head.at(0.0, 0.27)
    x += 0.9 * head.dx
    brush.fill(curve([(x + size * 0.15, y - size * 2.3), (x + size * 0.8, y), (x + size * 0.55, y + size * 0.5),
                      (x - size * 0.2, y + size * 0.3)], closed=True), darker(skin, 0.10))  # fmt: skip
    brush.ellipse(x, y, size * 0.72, size * 0.56, mix(skin, (240, 120, 100), 0.16))
    under = np.linspace(-1.0, 1.0, 9)
    brush.stroke(
        np.stack([x + size * 0.66 * under, y + size * (0.56 - 0.24 * under**2)], axis=1), 0.011, darker(skin, 0.34)
    )
    brush.ellipse(x - size * 0.22, y - size * 0.2, size * 0.2, size * 0.15, lighter(skin, 0.55))


def draw_eyes(brush: Brush, head: Head) -> None:
    """Both eyes: white, iris, pupil and catchlights, cut by the lids, and the lashes' line."""
    for side in (-1, 1):
        _draw_eye(brush, head, side)


def _draw_eye(brush: Brush, head: Head, side: int) -> None:
    identity, pose, feeling = head.identity, head.pose, head.feeling
    x0, y0 = head.at(side * identity.spread, 0.06)
    size = identity.eye * (1 - 0.06 * side * pose.turn)
    x = np.linspace(-1.0, 1.0, 19)
    lid = (1 - x**2) ** 0.62
    bottom = y0 + size * lid * (0.66 - 0.42 * feeling.cheek)
    # Sorrow lets the outer half of the upper lid hang; anger the inner half.
    droop = 1 - 0.22 * feeling.slant * side * x
    opened = y0 - size * 0.96 * lid * feeling.eye * droop
    top = opened + (bottom - opened) * min(max(pose.blink, 0.0), 1.0)
    x_abs = x0 + size * x
    lash = darker(mix(identity.hair, (40, 30, 36), 0.7), 0.3)
    line = np.stack([x_abs, top], axis=1)
    if pose.blink > 0.05:
        brush.fill(_between(x_abs, opened, bottom), darker(identity.skin, 0.10))
    if pose.blink < 0.9:
        brush.fill(_between(x_abs, top, bottom), (252, 252, 250))
        cx, cy = x0 + size * (0.34 * pose.gaze[0] - 0.05 * side), y0 + size * (0.26 * pose.gaze[1] - 0.04)

        def cut(shape: Points) -> Points:
            return np.stack([shape[:, 0], np.clip(shape[:, 1], np.interp(shape[:, 0], x_abs, top),
                                                  np.interp(shape[:, 0], x_abs, bottom))], axis=1)  # fmt: skip

        brush.fill(cut(ellipse(cx, cy, size * 0.62, size * 0.66)), darker(identity.iris, 0.25))
        brush.fill(cut(ellipse(cx, cy + size * 0.08, size * 0.50, size * 0.50)), lighter(identity.iris, 0.12))
        brush.fill(cut(ellipse(cx, cy, size * 0.33, size * 0.35)), (26, 18, 24))
        brush.fill(cut(ellipse(cx - size * 0.22, cy - size * 0.26, size * 0.18, size * 0.18, 14)), (255, 255, 255))
        brush.fill(cut(ellipse(cx + size * 0.22, cy + size * 0.24, size * 0.09, size * 0.09, 10)), (236, 240, 250))
    weight = 0.022 if identity.build == "woman" else 0.015
    brush.stroke(line, weight, lash, ends=0.4)
    if identity.build == "woman":
        tip = line[-1 if side > 0 else 0]
        flick = tip + np.array([(-side * 0.008, 0.0), (side * 0.014, -0.014), (side * 0.002, 0.006)])
        brush.fill(flick, lash)


def draw_brows(brush: Brush, head: Head) -> None:
    """Tapered arcs, raised and slanted by the feeling."""
    identity, feeling = head.identity, head.feeling
    colour = darker(identity.hair, 0.34)
    t = np.linspace(-1.0, 1.0, 13)
    for side in (-1, 1):
        x0, y0 = head.at(side * identity.spread * 1.02, 0.06)
        y0 -= identity.eye * 1.42 + 0.012 + 0.026 * feeling.lift
        outward = t * side
        # Inner ends are at outward = -1.
        y = y0 + 0.030 * feeling.slant * (outward * 0.9 + 0.1) + 0.012 * t**2 + 0.007 * outward
        brush.stroke(np.stack([x0 + identity.eye * 1.12 * t, y], axis=1), identity.brow, colour, ends=0.45)


def draw_cheeks(brush: Brush, head: Head) -> None:
    """Flushed cheeks, stronger with joy, and freckles."""
    identity = head.identity
    flush = mix(identity.skin, (236, 92, 92), 0.14 + 0.22 * head.feeling.cheek)
    for side in (-1, 1):
        x, y = head.at(side * 0.62, 0.36 - 0.05 * head.feeling.cheek)
        brush.ellipse(x, y, identity.width * 0.20, identity.height * 0.115, flush)
        if identity.freckles:
            for u, v in ((-0.10, -0.05), (0.0, -0.02), (0.10, -0.06), (-0.05, 0.05), (0.06, 0.05)):
                fx, fy = x + u * identity.width, y + v * identity.height
                brush.ellipse(fx, fy, 0.006, 0.006, darker(mix(identity.skin, (196, 100, 60), 0.4), 0.12))


def draw_glasses(brush: Brush, head: Head) -> None:
    """Round or square frames and the bridge between them."""
    identity = head.identity
    if identity.glasses == "none":
        return
    colour: Colour = (58, 46, 60) if identity.glasses == "square" else darker(identity.accent, 0.45)
    size = identity.eye * 1.5
    y = 0.0
    for side in (-1, 1):
        x, y = head.at(side * identity.spread, 0.075)
        power = 1.0 if identity.glasses == "round" else 0.55
        loop = ellipse(0.0, 0.0, 1.0, 1.0, 32)
        loop = np.sign(loop) * np.abs(loop) ** power * np.array([size, size * (1.0 if power == 1.0 else 0.86)])
        brush.outline(loop + np.array([x, y]), 0.015, colour)
        arm = np.array([(x + side * size, y - 0.01), (side * identity.width * 0.98, y - 0.02)])
        brush.stroke(arm, 0.015, colour, ends=1.0)
    left, right = head.at(-identity.spread, 0)[0] + size, head.at(identity.spread, 0)[0] - size
    if right > left:
        brush.stroke(curve([(left, y), ((left + right) / 2, y - 0.012), (right, y)]), 0.016, colour, ends=1.0)


def _lip_colour(head: Head) -> Colour:
    skin = head.identity.skin
    return mix(skin, (206, 62, 76), 0.62) if head.identity.build == "woman" else mix(skin, (186, 84, 78), 0.42)


def _between(x: Points, top: Points, bottom: Points) -> Points:
    """The region between two curves over the same x, as a polygon."""
    return np.concatenate([np.stack([x, top], axis=1), np.stack([x, bottom], axis=1)[::-1]])
