"""Checks that this machine has what a run's config requires: GPUs, a logger's package, a logger's key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlsplit

import torch

LOGGERS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb"}
"""Logger class -> package that it requires."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


def missing_on_this_machine(config: dict[str, Any]) -> list[str]:
    """Returns a sentence for each problem, with the key to change.

    Args:
        config: Resolved config of the run; `trainer` and `logger` are read.
    """
    loggers = config.get("logger") or {}
    return [*_accelerator(config["trainer"]), *_packages(loggers), *_wandb(loggers)]


class RanksError(ValueError):
    """More devices than a run of this kind can train on."""


def check_one_rank(trainer: Mapping[str, Any]) -> None:
    """Refuses a sweep's job on several devices, because each of their processes would start the sweep again.

    Raises:
        RanksError: `trainer` selects more than one device.
    """
    devices, gpu = trainer["devices"], trainer["accelerator"] in ("auto", "gpu", "cuda")
    every = torch.cuda.device_count() if gpu and torch.cuda.is_available() else 1
    count = {"auto": every, "-1": every, -1: every}.get(devices, devices) if isinstance(devices, int | str) else devices
    if str(count) != "1" and not (isinstance(count, Sequence) and len(count) == 1 and not isinstance(count, str)):
        raise RanksError(
            f"a sweep (-m) trains each job on one device, and trainer.devices={devices}; set trainer.devices=1, or "
            "start each job by its own command"
        )


def _accelerator(trainer: dict[str, Any]) -> list[str]:
    name, devices = trainer.get("accelerator", "auto"), trainer.get("devices", "auto")
    if name not in ACCELERATORS:
        return [f"trainer.accelerator={name} is not known; give one of {', '.join(ACCELERATORS)}"]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if (name == "cuda" and not count) or (name == "mps" and not apple) or (name == "gpu" and not count and not apple):
        return [f"trainer.accelerator={name}: this machine has no such GPU that torch can use; give trainer=cpu"]
    if name in ("gpu", "cuda") and count:
        indices = devices if isinstance(devices, list) else range(devices) if type(devices) is int else []
        beyond = [index for index in indices if type(index) is not int or index >= count]
        return [f"trainer.devices={devices}: this machine has {count} GPUs; give fewer of them"] if beyond else []
    return []


def _packages(loggers: dict[str, Any]) -> list[str]:
    """Returns problems of loggers whose packages are not installed."""
    targets = [str(logger.get("_target_", "")) for logger in loggers.values() if isinstance(logger, dict)]
    required = [LOGGERS[name] for target in targets if (name := target.rpartition(".")[2]) in LOGGERS]
    return [
        f"{package} is not installed; pip install 'vidchat[log]', or give logger=none (metrics.csv is always written)"
        for package in required
        if find_spec(package) is None
    ]


def _wandb(loggers: dict[str, Any]) -> list[str]:
    """Returns the problem of an online logger without a key; wandb itself asks for one late, and only at a terminal."""
    online = [
        name
        for name, logger in loggers.items()
        if isinstance(logger, dict)
        and str(logger.get("_target_", "")).endswith("WandbLogger")
        and not logger.get("offline")
        and os.environ.get("WANDB_MODE", "online") == "online"
    ]
    if not online or _logged_in():
        return []
    key = f"logger.{online[0]}.offline"
    return [f"{key}=false needs a key; run 'wandb login', set WANDB_API_KEY, or give {key}=true and 'wandb sync' later"]


def _logged_in() -> bool:
    """Returns whether wandb has a key, in the environment or in the netrc where `wandb login` writes it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return netrc(os.environ.get("NETRC")).authenticators(str(host)) is not None
    except (OSError, NetrcParseError):
        return False
