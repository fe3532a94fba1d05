"""Protocol strings, which describe how a number was computed; a column of a table has one protocol string."""

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
    """Returns the first 12 hex digits of a file's SHA-256; a file is read again only after it has changed.

    Raises:
        OSError: The file cannot be read.
    """
    stat = Path(path).stat()
    return _hash_file_state(Path(path), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@cache
def _hash_file_state(path: Path, *_: int) -> str:
    """Hashes a file; inode, size and times are part of the cache key."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:12]


def text_hash(parts: Iterable[str]) -> str:
    """Returns the first 12 hex digits of the SHA-256 of some strings."""
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:12]


def weights_hash(module: torch.nn.Module) -> str:
    """Returns the first 12 hex digits of the SHA-256 over a module's tensors, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@cache
def versions(*packages: str) -> str:
    """Returns the versions of decoder and libraries, such as `av 18.1.0 (libavcodec 62.11.100), torch 2.13.0`."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    libraries = [f"{name} {metadata.version(name).split('+')[0]}" for name in packages]
    return ", ".join([f"av {av.__version__} (libavcodec {codec})", *libraries])


def protocol_string(parts: Mapping[str, object]) -> str:
    """Joins parts to a string `metric=FID; backend=...; ...`, in their order."""
    return "; ".join(f"{key}={value}" for key, value in parts.items())
