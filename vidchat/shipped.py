"""Files that ship with vidchat: configs, the demo's weights, an example. In a checkout these are links to the top."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent
CONFIGS = _HERE / "configs"
_FOLDERS = ("checkpoints", "examples")


def find(path: Path | str) -> Path:
    """Returns a path; `checkpoints/...` and `examples/...`, if they are not there, from what ships with vidchat."""
    path = Path(path)
    ships = path.parts[:1] in [(folder,) for folder in _FOLDERS] and ".." not in path.parts
    return _HERE / path if ships and not path.exists() and (_HERE / path).exists() else path
