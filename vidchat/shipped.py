"""Files that ship with vidchat: the configs. In a checkout `vidchat/configs` is a link to `configs/` at the top."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
