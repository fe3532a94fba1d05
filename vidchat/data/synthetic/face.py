"""A drawn talking head: `draw_face(identity, pose, size)` gives one picture.

Layers from back to front: backdrop, clothes, back hair, neck, head, features, front hair, glasses. Everything is a
smooth polygon, drawn at `SUPERSAMPLE` times the size and averaged down, so equal arguments give equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import radians

import numpy as np
from numpy.typing import NDArray

from vidchat.data.synthetic.canvas import Brush, Frame, Points, darker, ellipse, lighter, mix
from vidchat.data.synthetic.features import (
    Expression,
    draw_brows,
    draw_cheeks,
    draw_eyes,
    draw_glasses,
    draw_mouth,
    draw_nose,
)
from vidchat.data.synthetic.hair import draw_back_hair, draw_beard, draw_front_hair
from vidchat.data.synthetic.identity import Identity
from vidchat.data.synthetic.scene import backdrop, draw_clothes

SUPERSAMPLE = 4
CHIN = 0.265
"""Height of every chin, in unit coordinates before the zoom; heads grow upwards from it."""
ZOOM = 1.16
"""How near the person is."""


@dataclass(frozen=True)
class Pose:
    """What changes from picture to picture.

    Attributes:
        mouth: Opening of the mouth, 0 (closed) .. 1.
        width: Mouth drawn wide (1) or rounded (-1).
        blink: 0 (open) .. 1 (eyes closed).
        gaze: Where the eyes look, each -1..1, right and down positive.
        turn: Head turned to the side, -1..1, right positive.
        nod: Head turned up or down, -1..1, down positive.
        tilt: Head tilted, in degrees, clockwise positive.
        shift: Head moved, in units of the picture's shorter side.
        expression: A name in `features.EXPRESSIONS`.
        intensity: How much of the expression, 0 (neutral) .. 1.
    """

    mouth: float = 0.0
    width: float = 0.0
    blink: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    nod: float = 0.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    expression: str = "neutral"
    intensity: float = 1.0


@dataclass(frozen=True)
class Head:
    """Where the parts of this head are in this pose; what the drawing functions read.

    Attributes:
        y: The head's middle.
        dx, dy: How far turn and nod move the features over the head.
        contour: (n, 2) outline of the face, clockwise in the picture, starting at the right (angle 0), jaw dropped.
    """

    identity: Identity
    pose: Pose
    feeling: Expression
    y: float
    dx: float
    dy: float
    contour: Points

    @staticmethod
    def of(identity: Identity, pose: Pose) -> Head:
        feeling = Expression.blend(pose.expression, pose.intensity)
        y = CHIN - identity.height
        contour = _contour(identity, y, drop=0.07 * pose.mouth)
        return Head(identity, pose, feeling, y, 0.022 * pose.turn, 0.016 * pose.nod, contour)

    def at(self, u: float, v: float) -> tuple[float, float]:
        """The point (u, v) of the face, in shares of its half width and half height, moved by turn and nod."""
        return u * self.identity.width + self.dx, self.y + v * self.identity.height + self.dy


def draw_face(identity: Identity, pose: Pose, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One picture.

    Args:
        identity: Who.
        pose: In which state.
        size: (height, width) in pixels.

    Returns:
        uint8 array (height, width, 3), RGB.
    """
    image = backdrop(identity.backdrop, identity.scene, identity.accent, size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE)
    head = Head.of(identity, pose)
    body = Brush(image, Frame(radians(pose.tilt) * 0.15, 0.3 * pose.shift[0], 0.3 * pose.shift[1], 0.6, ZOOM))
    above = Brush(image, Frame(radians(pose.tilt), *pose.shift, 0.3, ZOOM))
    draw_clothes(body, identity)
    draw_back_hair(above, head)
    _draw_neck(body, identity)
    draw_clothes(body, identity, collar=True)
    _draw_head(above, head)
    for part in (draw_cheeks, draw_beard, draw_mouth, draw_nose, draw_eyes, draw_brows, draw_front_hair, draw_glasses):
        part(above, head)
    return np.asarray(image.reduce(SUPERSAMPLE))


def _contour(identity: Identity, y: float, drop: float, n: int = 56) -> Points:
    """The face's outline: an ellipse, full at the cheeks, narrowed to the chin by `jaw`, its chin lowered by `drop`."""
    angle = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    low = np.clip(s, 0.0, 1.0)
    x = np.sign(c) * np.abs(c) ** 0.88 * (1 - identity.jaw * low**1.6)
    return np.stack([identity.width * x, y + identity.height * s * (1 + drop * low**2)], axis=1)


def _draw_neck(body: Brush, identity: Identity) -> None:
    """The neck, with the chin's shadow across it."""
    half = identity.width * (0.52 if identity.build == "man" else 0.40)
    shade = darker(identity.skin, 0.22)
    body.fill(np.array([(-half, 0.1), (half, 0.1), (half * 1.08, 0.40), (-half * 1.08, 0.40)]), identity.skin)
    body.ellipse(0, 0.40, half * 1.1, 0.055, identity.skin)
    body.fill(np.array([(-half, 0.1), (half, 0.1), (half * 1.02, 0.29), (0.0, 0.335), (-half * 1.02, 0.29)]), shade)


def _draw_head(brush: Brush, head: Head) -> None:
    """Ears, face, and the soft shadow on its far side."""
    identity, skin = head.identity, head.identity.skin
    ear_y = head.y + 0.10 * identity.height + head.dy * 0.5
    for side in (-1, 1):
        ear_x = side * identity.width * 1.0 - head.dx * 0.6
        brush.ellipse(ear_x, ear_y, identity.width * 0.16, identity.height * 0.19, darker(skin, 0.06))
        brush.ellipse(ear_x + side * 0.006, ear_y, identity.width * 0.08, identity.height * 0.11, darker(skin, 0.2))
        if identity.earrings:
            brush.ellipse(ear_x + side * 0.012, ear_y + identity.height * 0.24, 0.016, 0.016, (250, 208, 96))
    brush.fill(head.contour, skin)
    quarter = len(head.contour) // 4
    edge = np.roll(head.contour, quarter, axis=0)[: 2 * quarter + 1]
    inner = edge[::-1] * np.array([0.80 - 0.1 * head.pose.turn, 1.0])
    brush.fill(np.concatenate([edge, inner]), darker(skin, 0.10))
    brush.fill(ellipse(head.dx - 0.02, head.y - 0.45 * identity.height, identity.width * 0.55, identity.height * 0.22),
               mix(skin, lighter(skin, 0.4), 0.28))  # fmt: skip
