"""Emotion by expression coefficients that the user's own code computes, such as Deep3DFaceRecon's 64.

Deep3DFaceRecon needs the Basel Face Model, whose licence everybody signs for themselves; so what is here is the socket.
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
        place: `package.module:function`, importable, of the user's own code. The function takes (N, H, W, 3) uint8 and
            gives (N, D) floats; its attribute `protocol`, a string, says which model and weights it uses.
    """

    dimension = "emotion"
    columns = (Column("emotion FID", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, place: str) -> None:
        self.place = place
        module, _, name = place.partition(":")
        try:
            self.function: Coefficients = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise BackendError(f"'{place}' cannot be imported ({error}); give package.module:function") from None
        self.told = getattr(self.function, "protocol", None)
        if not isinstance(self.told, str):
            raise BackendError(f"'{place}' has no attribute 'protocol', a string that names its model and weights")

    def spec(self) -> Mapping[str, object]:
        return {"backend": self.told, "frames": f"every {STEP}th"}

    def read(self, media: Media, truth: Media | None = None) -> Features:
        frames = media.frames[::STEP].permute(0, 2, 3, 1).numpy()
        rows = np.asarray(self.function(frames), np.float32)
        if rows.ndim != 2 or len(rows) != len(frames):
            raise BackendError(f"'{self.place}' gave {rows.shape} for {len(frames)} frames, not (N, D)")
        return {"rows": rows}

    def absent(self, true: Features) -> Features:
        """Coefficients that no face has: ten times the truth's largest, all of one sign; at least 10."""
        return {"rows": np.full_like(true["rows"], 10 * max(1.0, float(np.abs(true["rows"]).max())))}
