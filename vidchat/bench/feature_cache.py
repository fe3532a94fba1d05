"""Caches features on disk, each under a fingerprint of everything that it depends on."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from vidchat.bench.metric import Features
from vidchat.data.atomic_path import atomic_path


def fingerprint(*parts: str) -> str:
    """Returns the SHA-256 of some strings as hex digits."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


class FeatureCache:
    """A folder of features by key; damaged files count as absent, and files are written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:32]}.npz"

    def load(self, key: str) -> Features | None:
        """Returns the features, or `None` if there are none yet."""
        try:
            with np.load(self._path(key), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, key: str, features: Features) -> None:
        """Writes the features."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial, open(partial, "wb") as file:
            np.savez(file, **features)  # type: ignore[arg-type]
