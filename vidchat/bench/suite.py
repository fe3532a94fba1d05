"""Which measures are taken: for each dimension the canonical one if its weights are given, else its proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidchat.bench.faces import Centred, Detected, FaceFinder
from vidchat.bench.fidelity import Fidelity
from vidchat.bench.measure import Measure


@dataclass(frozen=True)
class Backends:
    """Weights that the user has; `None` takes the proxy, or leaves an extra out.

    Attributes:
        face: RFB-320 ONNX file; else the face is taken to be in the middle.
        frames: Of PSNR and SSIM, evenly; `None` for all.
        device: Where networks run.
    """

    face: Path | None = None
    frames: int | None = None
    device: str = "cpu"

    def __call__(self) -> Sequence[Measure]:
        """Makes the measures."""
        from vidchat.bench.proxy.coherence import NearestSpoken
        from vidchat.bench.proxy.drift import Drift
        from vidchat.bench.proxy.expression import ExpressionLines
        from vidchat.bench.proxy.identity import FaceLooks
        from vidchat.bench.proxy.random_features import RandomMotion, RandomPictures
        from vidchat.bench.proxy.sync import MouthAndLoudness
        from vidchat.bench.proxy.voice import PitchAndTimbre

        finder: FaceFinder = Detected(self.face) if self.face else Centred()
        return [
            RandomPictures(),
            RandomMotion(),
            Fidelity(self.frames),
            FaceLooks(finder),
            NearestSpoken(),
            MouthAndLoudness(finder),
            ExpressionLines(finder),
            PitchAndTimbre(),
            Drift(),
        ]
