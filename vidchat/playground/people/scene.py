"""What is around the head: the backdrop and the clothes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from vidchat.playground.people.canvas import Brush, Colour, Frame, Points, curve, darker, ellipse, lighter, mix
from vidchat.playground.people.person import Identity


def backdrop(colours: tuple[Colour, Colour], scene: str, accent: Colour, height: int, width: int) -> Image.Image:
    """A fresh image (height, width in pixels) with the scene painted on a soft gradient."""
    return _backdrop(colours, scene, accent, height, width).copy()


@lru_cache(maxsize=8)
def _backdrop(colours: tuple[Colour, Colour], scene: str, accent: Colour, height: int, width: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    reach = np.hypot((x - width * 0.42) / width, (y - height * 0.35) / height)[..., None].clip(0, 0.8) / 0.8
    pixels = np.array(colours[0]) + (np.array(colours[1]) - np.array(colours[0])) * reach
    image = Image.fromarray(np.round(pixels).astype(np.uint8))
    _SCENES[scene](Brush(image, Frame()), colours, accent)
    return image


def _disc(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    brush.fill(ellipse(0.0, -0.02, 0.46, 0.46, 90), lighter(colours[0], 0.45))


def _window(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    frame, sky = lighter(colours[0], 0.6), (190, 222, 240)
    for x0 in (-0.44, 0.22):
        brush.fill(_box(x0, -0.42, x0 + 0.24, 0.08), frame)
        brush.fill(_box(x0 + 0.02, -0.40, x0 + 0.22, 0.06), sky)
        brush.ellipse(x0 + 0.08, -0.20, 0.05, 0.03, (250, 252, 255))
        brush.ellipse(x0 + 0.13, -0.21, 0.06, 0.04, (250, 252, 255))
        brush.fill(_box(x0 + 0.112, -0.42, x0 + 0.128, 0.08), frame)
    brush.fill(_box(-3.0, 0.08, 3.0, 0.11), darker(colours[1], 0.08))


def _plant(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    brush.ellipse(0.30, -0.34, 0.10, 0.10, lighter(colours[0], 0.5))
    for lean, length in ((-0.16, 0.30), (-0.06, 0.42), (0.05, 0.40), (0.15, 0.26)):
        tip, half = (-0.38 + lean, 0.16 - length), 0.18 - length * 0.5
        right, left = (-0.345 + lean * 0.4, half), (-0.415 + lean * 0.4, half)
        leaf = curve([(-0.38, 0.20), right, tip, tip, left], closed=True)
        brush.fill(leaf, mix((94, 154, 104), colours[1], 0.25 + abs(lean)))
    brush.fill(np.array([(-0.48, 0.16), (-0.28, 0.16), (-0.31, 0.40), (-0.45, 0.40)]), mix(accent, colours[1], 0.35))


def _stripes(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    for i in range(-12, 13, 2):
        brush.fill(_box(i * 0.12, -2.0, (i + 1) * 0.12, 2.0), mix(colours[0], lighter(colours[0], 0.6), 0.55))


def _stars(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    star = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    spots = ((-0.40, -0.36, 0.05), (0.40, -0.30, 0.06), (-0.32, -0.02, 0.03), (0.43, 0.06, 0.035), (0.22, -0.44, 0.03),
             (-0.18, -0.45, 0.03), (-0.45, 0.18, 0.05), (0.34, -0.08, 0.02))  # fmt: skip
    for x, y, size in spots:
        brush.fill(star * size + np.array([x, y]), lighter(colours[0], 0.55))


def _frames(brush: Brush, colours: tuple[Colour, Colour], accent: Colour) -> None:
    for x, y, w, h, paint in ((-0.36, -0.24, 0.10, 0.13, accent), (0.37, -0.30, 0.10, 0.08, (112, 158, 170)),
                              (0.38, -0.08, 0.08, 0.10, mix(accent, (250, 220, 150), 0.6))):  # fmt: skip
        brush.fill(_box(x - w, y - h, x + w, y + h), lighter(colours[0], 0.75))
        brush.fill(_box(x - w + 0.018, y - h + 0.018, x + w - 0.018, y + h - 0.018), mix(paint, colours[0], 0.45))
        brush.ellipse(x, y + 0.01, w * 0.45, h * 0.45, mix(lighter(paint, 0.5), colours[0], 0.3))


_SCENES = {"disc": _disc, "window": _window, "plant": _plant, "stripes": _stripes, "stars": _stars, "frames": _frames}


def draw_clothes(brush: Brush, identity: Identity, collar: bool = False) -> None:
    """The shoulders, or, with `collar`, what lies over the neck."""
    wide = {"man": 0.43, "woman": 0.37, "child": 0.32}[identity.build]
    cloth, accent, neck = identity.cloth, identity.accent, identity.width * (0.55 if identity.build == "man" else 0.43)
    if not collar:
        brush.fill(_shoulders(wide, neck), cloth)
        if identity.outfit == "stripes":
            for y in (0.43, 0.49, 0.55):
                brush.fill(_box(-wide * 0.985, y, wide * 0.985, y + 0.026), accent)
        return
    _COLLARS[identity.outfit](brush, cloth, accent, neck)


def _shoulders(wide: float, neck: float) -> Points:
    right = curve(
        [
            (neck * 0.9, 0.335),
            (neck * 1.5, 0.365),
            (wide * 0.85, 0.41),
            (wide, 0.50),
            (wide * 1.05, 0.7),
            (wide * 1.05, 2.0),
        ]
    )
    return np.concatenate([right, right[::-1] * np.array([-1.0, 1.0])])


def _crew(brush: Brush, cloth: Colour, accent: Colour, neck: float) -> None:
    x = np.linspace(-1.0, 1.0, 17)
    brush.stroke(np.stack([neck * 1.12 * x, 0.442 - 0.095 * x**2], axis=1), 0.030, darker(cloth, 0.16), ends=0.9)


def _collar(brush: Brush, cloth: Colour, accent: Colour, neck: float) -> None:
    pale = lighter(cloth, 0.7)
    for side in (-1, 1):
        flap = [(side * neck * 1.05, 0.325), (side * neck * 1.5, 0.375), (side * neck * 0.95, 0.475), (0.0, 0.435)]
        brush.fill(np.array(flap), pale)
        brush.fill(
            np.array([(side * neck * 0.95, 0.475), (0.0, 0.435), (side * neck * 0.85, 0.450)]), darker(pale, 0.12)
        )
    brush.fill(np.array([(-0.014, 0.45), (0.014, 0.45), (0.020, 0.60), (-0.020, 0.60)]), accent)


def _hoodie(brush: Brush, cloth: Colour, accent: Colour, neck: float) -> None:
    x = np.linspace(-1.0, 1.0, 17)
    brush.stroke(np.stack([neck * 1.42 * x, 0.455 - 0.115 * x**2], axis=1), 0.075, darker(cloth, 0.12), ends=0.55)
    for side in (-1, 1):
        brush.stroke(
            curve([(side * 0.045, 0.47), (side * 0.055, 0.53), (side * 0.05, 0.60)]), 0.015, lighter(accent, 0.6), 0.8
        )


def _dungarees(brush: Brush, cloth: Colour, accent: Colour, neck: float) -> None:
    _crew(brush, cloth, accent, neck)
    for side in (-1, 1):
        x = side * neck * 1.75
        brush.fill(np.array([(x - 0.032, 0.37), (x + 0.032, 0.37), (x + 0.032, 0.62), (x - 0.032, 0.62)]), accent)
        brush.ellipse(x, 0.465, 0.016, 0.016, (250, 214, 120))


def _scarf(brush: Brush, cloth: Colour, accent: Colour, neck: float) -> None:
    x = np.linspace(-1.0, 1.0, 17)
    brush.fill(
        np.array([(neck * 0.5, 0.40), (neck * 1.1, 0.39), (neck * 1.25, 0.62), (neck * 0.5, 0.62)]),
        darker(accent, 0.12),
    )
    brush.stroke(np.stack([neck * 1.28 * x, 0.405 - 0.05 * x**2], axis=1), 0.095, accent, ends=0.75)
    brush.stroke(np.stack([neck * 1.2 * x, 0.415 - 0.05 * x**2], axis=1), 0.014, darker(accent, 0.18), ends=0.5)


_COLLARS = {
    "crew": _crew,
    "stripes": _crew,
    "collar": _collar,
    "hoodie": _hoodie,
    "dungarees": _dungarees,
    "scarf": _scarf,
}


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
