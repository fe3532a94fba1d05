"""Who is drawn: everything about a head that stays the same from frame to frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from vidchat.playground.people.canvas import Colour

Build = Literal["man", "woman", "child"]
BUILDS: tuple[Build, ...] = ("man", "woman", "child")

SKIN: tuple[Colour, ...] = (
    (255, 224, 198), (250, 208, 176), (238, 186, 146), (222, 164, 120), (190, 128, 86), (150, 96, 64), (112, 70, 48),
)  # fmt: skip
HAIR: tuple[Colour, ...] = (
    (44, 34, 40), (74, 48, 38), (122, 74, 42), (176, 106, 52), (214, 164, 88), (244, 212, 140), (168, 62, 44),
    (206, 204, 210),
)  # fmt: skip
DYED: tuple[Colour, ...] = ((232, 112, 140), (82, 142, 178), (126, 92, 170))
IRIS: tuple[Colour, ...] = ((84, 56, 40), (60, 104, 144), (72, 124, 84), (116, 86, 50), (52, 48, 56))
CLOTHES: tuple[Colour, ...] = (
    (226, 92, 84), (242, 166, 72), (250, 206, 96), (104, 170, 126), (62, 136, 152), (76, 104, 172), (142, 100, 168),
    (236, 238, 240), (70, 74, 92), (232, 140, 156),
)  # fmt: skip
BACKGROUNDS: tuple[tuple[Colour, Colour], ...] = (
    ((250, 226, 196), (252, 206, 158)), ((206, 230, 226), (160, 210, 204)), ((218, 220, 244), (184, 188, 230)),
    ((250, 214, 210), (244, 178, 172)), ((222, 236, 204), (188, 216, 160)), ((202, 226, 244), (156, 198, 230)),
    ((244, 236, 216), (228, 212, 176)), ((92, 110, 140), (70, 86, 118)), ((122, 100, 138), (98, 76, 116)),
)  # fmt: skip
SCENES = ("disc", "window", "plant", "stripes", "stars", "frames")

STYLES: dict[Build, tuple[str, ...]] = {
    "man": ("short", "side", "quiff", "bald", "curly", "beanie"),
    "woman": ("long", "bob", "bun", "pony", "waves", "afro"),
    "child": ("bowl", "pigtails", "tuft", "spiky", "curly"),
}
RANGES: dict[Build, dict[str, tuple[float, float]]] = {
    "man": {
        "width": (0.205, 0.235), "height": (0.27, 0.29), "jaw": (0.10, 0.22), "eye": (0.040, 0.046),
        "spread": (0.42, 0.47), "lips": (0.009, 0.013), "mouth": (0.075, 0.092), "brow": (0.020, 0.027),
        "nose": (0.034, 0.044),
    },
    "woman": {
        "width": (0.200, 0.228), "height": (0.26, 0.28), "jaw": (0.24, 0.34), "eye": (0.046, 0.053),
        "spread": (0.43, 0.48), "lips": (0.015, 0.020), "mouth": (0.068, 0.082), "brow": (0.012, 0.017),
        "nose": (0.026, 0.034),
    },
    "child": {
        "width": (0.222, 0.245), "height": (0.225, 0.24), "jaw": (0.12, 0.22), "eye": (0.052, 0.060),
        "spread": (0.44, 0.50), "lips": (0.009, 0.013), "mouth": (0.060, 0.072), "brow": (0.011, 0.015),
        "nose": (0.020, 0.026),
    },
}  # fmt: skip
OUTFITS = ("crew", "collar", "hoodie", "stripes", "dungarees", "scarf")


@dataclass(frozen=True)
class Identity:
    """A drawn person. Lengths in units of the frame's shorter side; see `random_identity` for their ranges.

    Attributes:
        build: man, woman or child; what the voice's register follows.
        width: Half the face's width.
        height: Half the face's height.
        jaw: How much the face narrows to the chin, 0..0.4.
        eye: The eye's half width.
        spread: The eyes' distance from the middle, as a share of `width`.
        lips: Thickness of the lips.
        mouth: Half the width of the closed mouth.
        brow: Thickness of the brows.
        nose: The nose's size.
        style: The hair, one of `STYLES`.
        beard: none, full, goatee or moustache.
        glasses: none, round or square.
        freckles: Drawn or not.
        earrings: Drawn or not.
    """

    build: Build
    width: float
    height: float
    jaw: float
    eye: float
    spread: float
    lips: float
    mouth: float
    brow: float
    nose: float
    skin: Colour
    iris: Colour
    hair: Colour
    style: str
    beard: str
    glasses: str
    freckles: bool
    earrings: bool
    outfit: str
    cloth: Colour
    accent: Colour
    backdrop: tuple[Colour, Colour]
    scene: str

    def record(self) -> dict[str, Any]:
        """The identity as plain JSON."""
        return asdict(self)


def random_identity(rng: np.random.Generator, build: Build | None = None) -> Identity:
    """A person drawn from the generator; `build` fixes man, woman or child."""
    build = BUILDS[rng.integers(3)] if build is None else build
    proportions = _proportions(rng, build)
    skin = int(rng.integers(len(SKIN)))
    cloth, accent = rng.choice(len(CLOTHES), size=2, replace=False)
    return Identity(
        build=build,
        **proportions,
        skin=SKIN[skin],
        iris=IRIS[rng.integers(len(IRIS))] if skin < 4 else IRIS[(0, 3, 4)[rng.integers(3)]],
        hair=_hair_colour(rng, skin),
        style=STYLES[build][rng.integers(len(STYLES[build]))],
        beard=("none", "full", "goatee", "moustache")[rng.integers(4)] if build == "man" else "none",
        glasses=("none", "none", "round", "square")[rng.integers(4)],
        freckles=bool(skin < 4 and rng.random() < 0.3),
        earrings=bool(build == "woman" and rng.random() < 0.6),
        outfit=OUTFITS[rng.integers(len(OUTFITS))],
        cloth=CLOTHES[cloth],
        accent=CLOTHES[accent],
        backdrop=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        scene=SCENES[rng.integers(len(SCENES))],
    )


def _proportions(rng: np.random.Generator, build: Build) -> dict[str, Any]:
    """Sizes of the face's parts: men long and square, children round with large eyes low in the face."""
    ranges = RANGES[build]
    return {name: round(float(rng.uniform(low, high)), 4) for name, (low, high) in ranges.items()}


def _hair_colour(rng: np.random.Generator, skin: int) -> Colour:
    """Natural colours, darker ones for darker skin; now and then a dyed one."""
    if rng.random() < 0.12:
        return DYED[rng.integers(len(DYED))]
    natural = HAIR if skin < 4 else HAIR[: 8 - skin]
    return natural[rng.integers(len(natural))]
