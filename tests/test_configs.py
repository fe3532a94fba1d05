"""Every part that a config names exists."""

from __future__ import annotations

import re

import pytest
from hydra.utils import get_object

from vidchat.shipped import CONFIGS

FILES = sorted(CONFIGS.rglob("*.yaml"))
TARGET = re.compile(r"_target_: ([\w.]+)")


@pytest.mark.parametrize("target", sorted({name for file in FILES for name in TARGET.findall(file.read_text())}))
def test_a_target_can_be_imported(target: str) -> None:
    if target.startswith("lightning.pytorch.loggers"):
        pytest.importorskip("tensorboard")
    assert callable(get_object(target))
