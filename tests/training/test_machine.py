"""What this machine lacks is said before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vidchat.training import machine
from vidchat.training.machine import missing_on_this_machine

ONLINE = {"wandb": {"_target_": "lightning.pytorch.loggers.WandbLogger", "offline": False}}


def lacking(monkeypatch: pytest.MonkeyPatch, gpus: int, trainer: dict[str, Any]) -> str:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    return "; ".join(missing_on_this_machine({"trainer": trainer, "logger": {}}))


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices", "message"),
    [
        (0, "gpu", 1, "trainer.accelerator=gpu: this machine has no such GPU"),
        (0, "cuda", "auto", "trainer.accelerator=cuda: this machine has no such GPU"),
        (0, "abacus", 1, "trainer.accelerator=abacus is not known"),
        (2, "gpu", 3, "trainer.devices=3: this machine has 2 GPUs"),
        (2, "cuda", [0, 99], "trainer.devices=[0, 99]: this machine has 2 GPUs"),
        (2, "gpu", "auto", ""),
        (2, "gpu", [0, 1], ""),
        (2, "gpu", -1, ""),
        (0, "cpu", 8, ""),
        (0, "auto", "auto", ""),
    ],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, gpus: int, accelerator: str, devices: Any, message: str) -> None:
    found = lacking(monkeypatch, gpus, {"accelerator": accelerator, "devices": devices})
    assert found.startswith(message)
    assert bool(found) == bool(message)


def test_a_key_for_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(loggers: dict[str, Any]) -> list[str]:
        return missing_on_this_machine({"trainer": {"accelerator": "cpu"}, "logger": loggers})

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(machine, "_logged_in", lambda: False)
    assert problems({"wandb": {**ONLINE["wandb"], "offline": True}}) == []
    assert [text.partition(" ")[0] for text in problems(ONLINE)] == ["logger.wandb.offline=false"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert problems(ONLINE) == []
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(machine, "_logged_in", lambda: True)
    assert problems(ONLINE) == []


def test_where_a_key_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not machine._logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert machine._logged_in()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not machine._logged_in()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert machine._logged_in()


def test_a_logger_s_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    board = {"board": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}}
    config = {"trainer": {"accelerator": "cpu"}, "logger": board}
    assert missing_on_this_machine(config) == []
    monkeypatch.setattr(machine, "find_spec", lambda package: None)
    assert [text.partition(",")[0] for text in missing_on_this_machine(config)] == [
        "tensorboard is not installed; pip install 'vidchat[log]'"
    ]
