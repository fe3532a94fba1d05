"""Kinds of damage to the records of an imitated annotation folder."""

from __future__ import annotations

import json
import random
import tarfile
from collections.abc import Callable
from typing import Any

Files = list[tuple[tarfile.TarInfo, bytes]]


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[str, str, bytes], Files]:
    return lambda kind, name, data: [(tarfile.TarInfo(f"{kind}/{name}.json"), change(data))]


def _set(**values: Any) -> Callable[[str, str, bytes], Files]:
    """Replaces values of the record; `None` removes the key."""

    def change(data: bytes) -> bytes:
        record = {**json.loads(data), **values}
        return json.dumps({key: value for key, value in record.items() if value is not None}).encode()

    return _bytes(change)


def _renamed(rename: Callable[[str, str], str]) -> Callable[[str, str, bytes], Files]:
    return lambda kind, name, data: [(tarfile.TarInfo(rename(kind, name)), data)]


def _symlink(kind: str, name: str, data: bytes) -> Files:
    info = tarfile.TarInfo(f"{kind}/{name}.json")
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return [(info, b"")]


def _twice(kind: str, name: str, data: bytes) -> Files:
    return [(tarfile.TarInfo(f"{kind}/{name}.json"), data), (tarfile.TarInfo(f"other/{name}.json"), data + b" ")]


# (reason with which the record must be listed, damage)
ANY: list[tuple[str, Callable[[str, str, bytes], Files]]] = [
    ("not JSON", _bytes(lambda data: data[: len(data) // 2])),
    ("not JSON", _bytes(lambda data: b"\x01\x02" + data)),
    ("not JSON", _bytes(lambda data: b"[" * 100_000)),
    ("empty file", _bytes(lambda data: b"")),
    ("empty file", _bytes(lambda data: bytes(600))),
    ("not an object", _bytes(lambda data: b'"' + b"text" + b'"')),
    ("not UTF-8", _bytes(lambda data: data.decode().encode("utf-16"))),
    ("not UTF-8", _bytes(lambda data: b'{"caf\xe9": ' + data + b"}")),
    ("name not in the release's form", _renamed(lambda kind, name: f"{kind}/{name.replace('_full_video', '')}.json")),
    ("name not in the release's form", _renamed(lambda kind, name: f"{kind}/._{name}.json")),
    ("unsafe path", _renamed(lambda kind, name: f"{kind}/../../{name}.json")),
    ("unsafe path", _renamed(lambda kind, name: f"/etc/{name}.json")),
    ("not a plain file", _symlink),
    ("not a .json file", _renamed(lambda kind, name: f"{kind}/{name}.txt")),
]
MERGED: list[tuple[str, Callable[[str, str, bytes], Files]]] = [
    ("missing key", _set(bbox=None)),
    ("not finite", _set(bbox=[0.1, float("nan"), 0.5, 0.6])),
    ("not finite", _set(dover=float("inf"))),
    ("box out of order", _set(bbox=[0.6, 0.1, 0.3, 0.9])),
    ("box outside the frame", _set(bbox=[0.1, 0.1, 1.6, 0.9])),
    ("box outside the frame", _set(bbox=[100, 100, 700, 900])),
    ("wrong length", _set(bbox=[0.1, 0.1, 0.6])),
    ("wrong type", _set(bbox=["0.1", "0.1", "0.6", "0.9"])),
    ("wrong type", _set(sync=[1, 2])),
    ("wrong length", _set(sync={"0": [[1.0, 2.0]]})),
    ("wrong type", _set(num_frames="many")),
    ("duration is not positive", _set(duration=-4.2)),
    ("ends before it starts", _set(start_seconds=900.0, end_seconds=100.0)),
    ("out of range", _set(start_seconds=-5.0)),
    ("out of range", _set(dover=7.5)),
    ("out of range", _set(num_frames=10**30)),
    ("names another video", _set(video_name="AAAAAAAAAAA_1920x1080_full_video")),
    ("not Unicode", _set(video_name="\ud800")),
    ("name comes twice", _twice),
]
DAMAGES = {"merged_anno": ANY + MERGED}


def members(kind: str, name: str, data: bytes, rng: random.Random) -> tuple[str, Files]:
    """Returns the reason with which a record should be listed, and the damaged files to write in its place."""
    reason, damage = rng.choice(DAMAGES.get(kind, ANY))
    return reason, damage(kind, name, data)
