"""A drawn talking head: `draw_face(identity, pose, size)` gives one frame.

Layers from back to front: backdrop, clothes, back hair, neck, head, features, front hair, glasses. Everything is a
smooth polygon, drawn at `SUPERSAMPLE` times the size and averaged down, so equal arguments give equal bytes.
"""

from __future__ import annotations

from math import radians

import numpy as np
from numpy.typing import NDArray

from vidchat.playground.people.canvas import Brush, Frame, darker, ellipse, lighter, mix
from vidchat.playground.people.facial_features import (
    draw_brows,
    draw_cheeks,
    draw_eyes,
    draw_glasses,
    draw_mouth,
    draw_nose,
)
from vidchat.playground.people.hair import draw_back_hair, draw_beard, draw_front_hair
from vidchat.playground.people.head import Head, Pose
from vidchat.playground.people.person import Identity
from vidchat.playground.people.scene import backdrop, draw_clothes

SUPERSAMPLE = 4
ZOOM = 1.16
"""How near the person is."""


def draw_face(identity: Identity, pose: Pose, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One frame.

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
