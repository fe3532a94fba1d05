"""Files that ship with vidchat: configs, weights of the demo, an example. In a checkout they are symbolic links."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
CONFIGS = _HERE / "configs"
_FOLDERS = ("checkpoints", "examples")


def find(path: Path | str) -> Path:
    """Returns a path; `checkpoints/...` and `examples/...` that do not exist are looked up among the shipped files."""
    path = Path(path)
    ships = path.parts[:1] in [(folder,) for folder in _FOLDERS] and ".." not in path.parts
    return _HERE / path if ships and not path.exists() and (_HERE / path).exists() else path
