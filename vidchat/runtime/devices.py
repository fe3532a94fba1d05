"""Resolves the name of a device before any work begins."""

from __future__ import annotations

import torch

KNOWN = "give auto, cpu, cuda or cuda:N"


class DeviceError(ValueError):
    """A device that this machine does not have."""


def usable(name: str) -> str:
    """Returns the name of a device that exists; `auto` is a GPU if there is one.

    Raises:
        DeviceError: the name is unknown, or this machine has no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device={name} is not known; {KNOWN}") from None
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
        raise DeviceError(f"device={name} cannot be used; {KNOWN}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device={name}: there is no Apple GPU here; {KNOWN}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and count <= (device.index or 0):
        available = f"{count} CUDA GPUs, cuda:0 to cuda:{count - 1}" if count else "no CUDA GPU that torch can use"
        raise DeviceError(f"device={name}: this machine has {available}; {KNOWN}")
    return str(device)
