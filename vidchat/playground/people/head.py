"""A head in a pose: what is felt, how it is held, and where its parts therefore are."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from vidchat.playground.people.canvas import Points
from vidchat.playground.people.person import Identity

CHIN = 0.265
"""Height of every chin, in unit coordinates before the zoom; heads grow upwards from it."""


@dataclass(frozen=True)
class Expression:
    """What a feeling does to the face.

    Attributes:
        smile: Corners of the mouth up (1) or down (-1).
        lift: Brows raised (1) or lowered (-1).
        slant: Inner ends of the brows up (1: sorrow) or down (-1: anger).
        eye: How far the eyes open, 1 at rest.
        cheek: Cheeks raised and flushed, 0..1.
        round: The mouth rounded, 0..1.
    """

    smile: float
    lift: float
    slant: float
    eye: float
    cheek: float
    round: float

    @staticmethod
    def blend(name: str, intensity: float) -> Expression:
        """`intensity` (0..1) of the way from neutral to the named expression."""
        if name not in EXPRESSIONS:
            raise ValueError(f"no expression is called {name!r}; choose one of {', '.join(EXPRESSIONS)}")
        start, end = astuple(EXPRESSIONS["neutral"]), astuple(EXPRESSIONS[name])
        return Expression(*(a + (b - a) * intensity for a, b in zip(start, end, strict=True)))


EXPRESSIONS = {
    "neutral": Expression(smile=0.15, lift=0.0, slant=0.0, eye=0.95, cheek=0.15, round=0.0),
    "happy": Expression(smile=1.0, lift=0.45, slant=0.05, eye=0.90, cheek=1.0, round=0.0),
    "sad": Expression(smile=-0.95, lift=0.25, slant=1.0, eye=0.72, cheek=0.0, round=0.2),
    "surprised": Expression(smile=0.0, lift=1.0, slant=0.15, eye=1.25, cheek=0.2, round=0.8),
    "angry": Expression(smile=-0.55, lift=-0.45, slant=-1.0, eye=0.80, cheek=0.35, round=0.0),
}


@dataclass(frozen=True)
class Pose:
    """What changes from frame to frame.

    Attributes:
        mouth: Opening of the mouth, 0 (closed) .. 1.
        width: Mouth drawn wide (1) or rounded (-1).
        blink: 0 (open) .. 1 (eyes closed).
        gaze: Where the eyes look, each -1..1, right and down positive.
        turn: Head turned to the side, -1..1, right positive.
        nod: Head turned up or down, -1..1, down positive.
        tilt: Head tilted, in degrees, clockwise positive.
        shift: Head moved, in units of the frame's shorter side.
        expression: A name in `EXPRESSIONS`.
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
        contour: (n, 2) outline of the face, clockwise in the frame, starting at the right (angle 0), jaw dropped.
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


def _contour(identity: Identity, y: float, drop: float, n: int = 56) -> Points:
    """The face's outline: an ellipse, full at the cheeks, narrowed to the chin by `jaw`, its chin lowered by `drop`."""
    angle = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    low = np.clip(s, 0.0, 1.0)
    x = np.sign(c) * np.abs(c) ** 0.88 * (1 - identity.jaw * low**1.6)
    return np.stack([identity.width * x, y + identity.height * s * (1 + drop * low**2)], axis=1)
