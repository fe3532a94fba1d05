"""Damaged and hostile media: whatever a file holds, every reader gives frames or one `MediaError` that names it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.law import Case, judge
from tests.faults.mutations import damaged
from tests.faults.specimens import SUFFIXES, film, make_specimens
from vidchat.bench.clips import View, black, read_answer
from vidchat.data.media import read
from vidchat.data.media.read import MediaError
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.dialogue import Clip

SIZE = (16, 16)
VIEW = View(SIZE)


class _Tokenizer:
    temporal_stride, sample_rate, hop = 4, 16000, 320


def _encode(path: Path, part: str) -> object:
    encoder = ClipEncoder(_Tokenizer(), _Tokenizer(), 25, SIZE, allow_portrait=True)  # type: ignore[arg-type]
    return encoder.read(Segment(Clip(path, "ann"), part, 4))  # type: ignore[arg-type]


def _whole(path: Path, **more: float) -> object:
    return read.read_clip(Clip(path, "ann", **more), fps=25, size=SIZE, sample_rate=16000)  # type: ignore[arg-type]


READERS: dict[str, Callable[[Path], object]] = {
    "read_clip": _whole,
    "read_clip from 0.2 s": lambda path: _whole(path, start=0.2),
    "read_clip to 0.2 s": lambda path: _whole(path, end=0.2),
    "read_clip, silent": lambda path: read.read_clip(
        Clip(path, "ann"), fps=25, size=SIZE, sample_rate=16000, audio=False, max_seconds=10
    ),
    "read_image": lambda path: read.read_image(path, SIZE),
    "read_audio": lambda path: read.read_audio(Clip(path, "ann"), 6400, 16000),
    "crop_frames": lambda path: list(read.crop_frames(Clip(path, "ann"), (0.2, 0.2, 0.8, 0.8), 25, 64)),
    "header_of": read.header_of,
    "length_of": read.length_of,
    "is_wide": read.is_wide,
    "frame_size": read.frame_size,
    "a first piece": lambda path: _encode(path, "first"),
    "a last piece": lambda path: _encode(path, "last"),
    "spans": lambda path: _encode(path, "spans"),
}


def _made(path: Path) -> object:
    """A bench's clip: by its rule, none is an error."""
    return read_answer(Clip(path, "ann"), black(10, VIEW), VIEW)


def damaged_files(folder: Path, suffix: str, count: int) -> Iterator[Case]:
    """Damaged copies, each through the next reader."""
    good, readers = (folder / f"good.{suffix}").read_bytes(), list(READERS.items())
    for seed in range(count):
        how, data = damaged(good, seed)
        path = folder / f"{seed % 50}.{suffix}"
        path.write_bytes(data)
        name, reader = readers[seed % len(readers)]
        yield Case(f"{suffix} {seed} ({how}) by {name}", lambda r=reader, p=path: r(p), path.name, (MediaError,))
        if seed % 10 == 0:
            yield Case(f"{suffix} {seed} ({how}) by read_made", lambda p=path: _made(p), must="work")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_a_media_error(suffix: str, tmp_path: Path, amount: Callable[[int], int]) -> None:
    make_specimens(tmp_path)
    share = {"mp4": 1200, "mkv": 600, "mov": 500}.get(suffix, 300)
    judge(damaged_files, tmp_path, suffix, amount(share))


def strange_files(folder: Path) -> Iterator[Case]:
    """Files that are no media, or media that ask for more than they hold, each through every reader."""
    for path in _strange(folder):
        for name, reader in READERS.items():
            yield Case(f"{path.name} by {name}", lambda r=reader, p=path: r(p), path.name, (MediaError,))
        yield Case(f"{path.name} by read_made", lambda p=path: _made(p), must="work")


def _strange(folder: Path) -> Iterator[Path]:
    texts = {
        "empty.mp4": b"", "text.mp4": b"hello\n" * 50, "zeros.mp4": bytes(5000), "page.mp4": b"<html><video></html>",
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n",
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "sdp.mp4": b"v=0\nm=video 9 RTP/AVP 96\nc=IN IP4 0.0.0.0\n",
        "drawn.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
        "script.mp4": b"#!/bin/sh\ntouch canary\n", "pickle.mp4": b"cposix\nsystem\n(S'touch canary'\ntR.",
    }  # fmt: skip
    for name, data in texts.items():
        (folder / name).write_bytes(data)
        yield folder / name
    yield folder / "missing.mp4"
    (folder / "folder.mp4").mkdir(exist_ok=True)
    yield folder / "folder.mp4"
    if not (folder / "pipe.mp4").exists():
        os.mkfifo(folder / "pipe.mp4")
        (folder / "loop.mp4").symlink_to("loop.mp4")
    yield folder / "pipe.mp4"
    yield folder / "loop.mp4"
    yield Path("/dev/zero")
    yield folder / f"{300 * 'n'}.mp4"
    half = folder / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(half)
    half.write_bytes(half.read_bytes()[:1500])
    yield half
    (folder / "huge.png").write_bytes(_png(65535, 65535, b"\0" * 1000))
    yield folder / "huge.png"
    (folder / "bomb.png").write_bytes(_png(20000, 20000, zlib.compress(bytes(20001 * 20000), 1)))
    yield folder / "bomb.png"
    for jump in (3600.0, 43200.0):
        yield film(folder / f"jump_{jump:g}.mp4", jump=jump)
        yield film(folder / f"jump_{jump:g}.mkv", audio="libopus", jump=jump)


def _png(width: int, height: int, packed: bytes) -> bytes:
    """A grey frame of any size that its header tells, with any data."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 0, 0, 0, 0))
    chunks = ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    body = (len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def test_a_strange_file_is_refused_or_read_in_bounds(tmp_path: Path) -> None:
    judge(strange_files, tmp_path)
    assert not (tmp_path / "canary").exists()
