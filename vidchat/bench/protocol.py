"""How a number was made, in one string. Numbers with different strings never stand in one column."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import av
import torch

BLOCK = 1 << 20


def file_hash(path: Path) -> str:
    """The first 12 hex digits of a file's SHA-256; a file that did not change is read once a process.

    Raises:
        OSError: The file cannot be read.
    """
    stat = Path(path).stat()
    return _hash_as_it_is(Path(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _hash_as_it_is(path: Path, *_: int) -> str:
    """The hash of a file as it is now; the numbers tell this state from others."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:12]


def text_hash(parts: Iterable[str]) -> str:
    """The first 12 hex digits of the SHA-256 of some strings."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:12]


def weights_hash(module: torch.nn.Module) -> str:
    """The first 12 hex digits of the SHA-256 over a module's tensors, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@cache
def versions(*packages: str) -> str:
    """The versions of the decoder and of libraries, as `av 18.1.0 (libavcodec 62.11.100), torch 2.13.0`."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    told = [f"{name} {metadata.version(name).split('+')[0]}" for name in packages]
    return ", ".join([f"av {av.__version__} (libavcodec {codec})", *told])


def protocol_string(parts: Mapping[str, object]) -> str:
    """`metric=FID; backend=...; ...` in the order given."""
    return "; ".join(f"{key}={value}" for key, value in parts.items())
