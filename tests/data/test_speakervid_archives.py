from __future__ import annotations

import gzip
import io
import random
import tarfile
import zlib
from pathlib import Path

import pytest

from vidchat.data.manifest.speakervid import archives
from vidchat.data.manifest.speakervid.archives import read_archive, read_folder_part

CONTENTS = {f"batch/{k:03d}.json": random.Random(k).randbytes(100 + 37 * k) for k in range(60)}


def tar(contents: dict[str, bytes] = CONTENTS, kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read(folder: Path, data: bytes) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    path = folder / "a.tar.gz"
    path.write_bytes(data)
    members = list(read_archive(path))
    good = {member.name: member.data for member in members if member.data is not None}
    return good, [(member.name, member.reason) for member in members if member.data is None]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_member_arrives(tmp_path: Path, packed: bool, kind: int) -> None:
    contents = {**CONTENTS, "d/" * 40 + "n" * 60 + ".json": b"a long name", "empty.json": b""}
    data = tar(contents, kind)
    assert read(tmp_path, gzip.compress(data) if packed else data) == (contents, [])


def test_everything_before_a_cut_arrives(tmp_path: Path) -> None:
    """Also the last kilobytes before it, which gzip's own reader discards."""
    data = tar()
    packed = gzip.compress(data, 1)
    for cut in (len(packed) // 2, len(packed) - 600, len(packed) - 20):
        inflated = zlib.decompressobj(wbits=31).decompress(packed[:cut])
        expected = [name for k, name in enumerate(CONTENTS) if _end(k) <= len(inflated)]
        good, damage = read(tmp_path, packed[:cut])
        assert list(good) == expected
        assert all(good[name] == CONTENTS[name] for name in good)
        assert damage, "the truncation must be reported"


def _end(last: int) -> int:
    return sum(512 + -(-len(data) // 512) * 512 for data in list(CONTENTS.values())[: last + 1])


def test_reading_continues_after_a_damaged_header(tmp_path: Path) -> None:
    data = bytearray(tar())
    lost = 20
    data[_end(lost - 1) + 3] ^= 0xFF
    good, damage = read(tmp_path, bytes(data))
    assert set(CONTENTS) - set(good) == {f"batch/{lost:03d}.json"}
    assert damage == [("", "tar header is damaged")]


def test_a_damaged_stream_yields_everything_before(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(tar(), 1))
    place = 3 * len(packed) // 4
    packed[place : place + 8] = b"\xff" * 8
    good, damage = read(tmp_path, bytes(packed))
    assert len(good) >= 30
    assert damage


def test_an_archive_without_its_end_is_reported(tmp_path: Path) -> None:
    good, damage = read(tmp_path, tar()[: _end(len(CONTENTS) - 1)])
    assert good == CONTENTS
    assert damage == [("", "archive is cut off")]
    assert read(tmp_path, b"") == ({}, [("", "archive is empty")])
    assert read(tmp_path, b"no tar at all" * 100)[1]


def test_links_and_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 1000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind in (("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
        for name, size in (("giant.json", 5000), ("small.json", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.addfile(info, io.BytesIO(bytes(size)))
    good, damage = read(tmp_path, buffer.getvalue())
    assert list(good) == ["small.json"]
    assert [name for name, _ in damage] == ["link", "hard", "pipe", "giant.json"]


def test_media_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.mp4": bytes(2_000_000), "a.json": b"{}", "b.mp4": bytes(700)}))
    assert [member.name for member in read_archive(path, ".json")] == ["a.json"]


def test_the_parts_of_a_folder_are_its_files(tmp_path: Path) -> None:
    for name in ("a.json", "b.json", "c.json"):
        (tmp_path / name).write_bytes(b"{}")
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    found = [member for part in range(3) for member in read_folder_part(tmp_path, part, 3)]
    assert sorted(m.name for m in found if m.data is not None) == ["a.json", "b.json", "c.json"]
    assert [m.name for m in found if m.data is None] == ["link.json"]


@pytest.mark.parametrize("packed", [False, True])
def test_no_damage_stops_the_reading(tmp_path: Path, packed: bool) -> None:
    """Bytes flipped, deleted or inserted anywhere; everything before the first change is always read."""
    rng, clean = random.Random(0), gzip.compress(tar(), 1) if packed else tar()
    for _ in range(60):
        data, place = bytearray(clean), rng.randrange(len(clean))
        change = rng.choice(["flip", "cut", "add"])
        if change == "flip":
            data[place] ^= rng.randrange(1, 256)
        elif change == "cut":
            del data[place : place + rng.randrange(1, 5000)]
        else:
            data[place:place] = rng.randbytes(rng.randrange(1, 5000))
        good, _ = read(tmp_path, bytes(data))
        if not packed:
            expected = [name for k, name in enumerate(CONTENTS) if _end(k) <= place]
            assert all(good[name] == CONTENTS[name] for name in expected)
