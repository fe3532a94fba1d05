"""Emotion by expression coefficients that the user's own code computes, such as Deep3DFaceRecon's 64.

Deep3DFaceRecon needs the Basel Face Model, whose licence every user must sign, so the model itself is not included.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from vidchat.bench.metric import BackendError, Column, Features, Metric
from vidchat.data.media.read import Media

Coefficients = Callable[[NDArray[np.uint8]], NDArray]
STEP = 2


class ExpressionCoefficients(Metric):
    """Fréchet distance over coefficients of single frames.

    Args:
        function: Importable function of the user's own code, as `package.module:function`. It maps frames (N, H, W, 3)
            uint8 to coefficients (N, D); its attribute `protocol`, a string, names its model and weights.
    """

    dimension = "emotion"
    columns = (Column("emotion FID", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, function: str) -> None:
        self.function = function
        module, _, name = function.partition(":")
        try:
            self.compute: Coefficients = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise BackendError(f"'{function}' cannot be imported ({error}); give package.module:function") from None
        self.protocol = getattr(self.compute, "protocol", None)
        if not isinstance(self.protocol, str):
            raise BackendError(f"'{function}' has no attribute 'protocol', a string that names its model and weights")

    def spec(self) -> Mapping[str, object]:
        return {"backend": self.protocol, "frames": f"every {STEP}th"}

    def read(self, media: Media, truth: Media | None = None) -> Features:
        frames = media.frames[::STEP].permute(0, 2, 3, 1).numpy()
        rows = np.asarray(self.compute(frames), np.float32)
        if rows.ndim != 2 or len(rows) != len(frames):
            raise BackendError(f"'{self.function}' returned {rows.shape} for {len(frames)} frames, not (N, D)")
        return {"rows": rows}

    def absent(self, truth: Features) -> Features:
        """Returns coefficients that no face has: ten times the truth's largest, all of one sign; at least 10."""
        return {"rows": np.full_like(truth["rows"], 10 * max(1.0, float(np.abs(truth["rows"]).max())))}
