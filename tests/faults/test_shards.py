"""Damaged and hostile shards: what is read is what was written, or one sentence names the shard."""

from __future__ import annotations

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import commands
from tests.faults.children import run
from tests.faults.law import Case, judge
from tests.faults.mutations import VALUES, damaged, damaged_json
from vidchat.data.manifest.speakervid.archives import read_archive
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.data.tokens.media_shards import MediaShards
from vidchat.data.tokens.shards import ShardError, problems
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.data.tokens.token_folder import TokenFolder
from vidchat.dialogue import Clip
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec


def encoded(data: Path, folder: Path) -> Path:
    """A token cache of every clip of the data set, in `folder/tokens`."""
    if not (folder / "tokens").is_dir():
        assert run(commands.encode, data, folder / "tokens", folder=folder) == ""
    return folder / "tokens"


class Reader:
    """Opens a token cache and loads all of it."""

    def __init__(self, data: Path, tokens: Path) -> None:
        self.data, self.tokens = data, tokens
        self.encoder = ClipEncoder(
            StackedVAE.load(data / "video_vae"), StftCodec.load(data / "audio_codec"), 25, (32, 32)
        )
        self.pieces = [Segment(Clip(path, "ann"), "first", 4) for path in sorted(data.glob("*.mp4"))]
        self.good = self.load()

    def load(self) -> list[Any]:
        cache = TokenCache(self.data, self.encoder, 4, folder=self.tokens)
        there = [piece for piece in self.pieces if not cache.lookup(piece).missing]
        try:
            return [(tokens.latents, tokens.codes) for piece in there for tokens in [cache.load(cache.key(piece))]]
        finally:
            for track in cache.tracks.values():
                track.reader.close()

    def check(self) -> None:
        """What is loaded is what was written: less, but nothing else."""
        for latents, codes in self.load():
            assert any(torch.equal(latents, a) and torch.equal(codes, b) for a, b in self.good), (
                "other tokens came back"
            )


def damaged_shards(folder: Path, data: Path, count: int) -> Iterator[Case]:
    """Damaged tars: a sample is right or a `ShardError`."""
    reader = Reader(data, folder / "tokens")
    tars = sorted((folder / "tokens").glob("*/*.tar"))
    for seed in range(count):
        path = tars[seed % len(tars)]
        good = path.read_bytes()
        how, bytes_ = damaged(good, seed)
        path.write_bytes(bytes_)
        yield Case(f"{path.name} {seed} ({how})", reader.check, path.name, (ShardError,))
        path.write_bytes(good)
    for make in ("gone", "a folder", "a pipe"):
        path, kept = tars[0], tars[0].read_bytes()
        path.unlink()
        if make == "a folder":
            path.mkdir()
        elif make == "a pipe":
            __import__("os").mkfifo(path)
        yield Case(f"{path.name}: {make}", reader.check, path.name, (ShardError,))
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(kept)


def damaged_indexes(folder: Path, data: Path, count: int) -> Iterator[Case]:
    """Damaged indexes of shards, `index.json` and `made_with.json`."""
    tokens = folder / "tokens"
    reader = Reader(data, tokens)
    paths = sorted(tokens.glob("*/*.json"))
    for seed in range(count):
        path = paths[seed % len(paths)]
        good = path.read_bytes()
        if seed % 3:
            how, text = damaged_json(json.loads(good), seed)
            path.write_text(text)
        else:
            how, bytes_ = damaged(good, seed)
            path.write_bytes(bytes_)
        place = f"{path.parent.name[:8]}/{path.name}"
        yield Case(f"{place} {seed} ({how})", reader.check, str(path.parent))
        if path.name == "index.json":
            yield Case(f"{place} {seed} ({how}) verified", lambda p=path: list(problems(p.parent)), str(path.parent))
        path.write_bytes(good)


def test_a_damaged_shard_gives_no_other_tokens(data: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    encoded(data, tmp_path)
    judge(damaged_shards, tmp_path, data, amount(400))


def test_a_damaged_index_is_told_in_a_sentence(data: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    encoded(data, tmp_path)
    judge(damaged_indexes, tmp_path, data, amount(300))


def hostile_media_shards(folder: Path, count: int) -> Iterator[Case]:
    """Media shards whose index names files outside, huge sizes, or nonsense."""
    index = next((folder / "packed" / "media").glob("shard-*.json"))
    good = index.read_bytes()
    kept = (folder / "packed" / "media" / "index.json").read_bytes()
    for seed in range(count):
        how, text = damaged_json(json.loads(good), seed)
        index.write_text(text)
        yield Case(f"media index {seed} ({how})", partial(_extract_all, folder / "packed"), str(folder / "packed"))
        if seed % 20 == 0:
            act = partial(commands.vidchat, "data", "stats", folder / "packed")
            yield Case(f"media index {seed} ({how}) in stats", act, str(folder / "packed"))
    index.write_bytes(good)
    assert (folder / "packed" / "media" / "index.json").read_bytes() == kept


def _extract_all(root: Path) -> None:
    shards = MediaShards(root)
    for name in [*shards._files, "../../../etc/passwd"]:
        with shards.extracted(name) as path:
            assert path is None or path.stat().st_size < 10_000_000


def test_hostile_media_shards_are_told_in_a_sentence(data: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    pack = ("data", "pack", data, "--output", tmp_path / "packed")
    assert run(commands.vidchat, *pack, folder=tmp_path) == ""
    judge(hostile_media_shards, tmp_path, amount(120))


def hostile_archives(folder: Path, count: int) -> Iterator[Case]:
    """Annotation archives with members that would leave the folder, links, devices, huge headers, and damage."""
    path = folder / "a.tar.gz"
    for name, data in _strange_tars().items():
        path.write_bytes(data)
        yield Case(f"tar: {name}", partial(_read_archive, path, folder), must="work")
    good = _tar([(f"batch/{k:03d}.json", 500 * b"x", tarfile.REGTYPE) for k in range(8)])
    for seed in range(count):
        how, data = damaged(gzip.compress(good) if seed % 2 else good, seed)
        path.write_bytes(data)
        yield Case(f"tar {seed} ({how})", partial(_read_archive, path, folder), must="work")


def _read_archive(path: Path, folder: Path) -> None:
    before = set(folder.rglob("*"))
    total = sum(len(member.data or b"") for member in read_archive(path))
    assert total < 100_000_000
    assert set(folder.rglob("*")) == before, "a member was written"


def _tar(members: list[tuple[str, bytes, bytes]], **more: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as file:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            for key, value in more.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _strange_tars() -> dict[str, bytes]:
    whole = _tar([("a.json", b"{}", tarfile.REGTYPE)])
    huge = bytearray(whole)
    huge[124:136] = b"77777777777\0"  # octal: 8 GB
    checksum = sum(huge[:148]) + 8 * 32 + sum(huge[156:512])
    huge[148:156] = b"%06o\0 " % checksum
    return {
        "traversal": _tar([("../../x.json", b"{}", tarfile.REGTYPE), ("/tmp/x.json", b"{}", tarfile.REGTYPE)]),
        "links": _tar([("a.json", b"", tarfile.SYMTYPE), ("b.json", b"", tarfile.LNKTYPE)], linkname="/etc/passwd"),
        "devices": _tar([("a.json", b"", tarfile.CHRTYPE), ("b.json", b"", tarfile.FIFOTYPE)]),
        "a huge member": bytes(huge), "long names": _tar([("d/" * 2000 + "x.json", b"{}", tarfile.REGTYPE)]),
        "empty": b"", "nothing": bytes(10_240), "a bomb": gzip.compress(bytes(200_000_000), 9), "text": b"hello" * 300,
        "names": _tar([("\udcff\n.json", b"{}", tarfile.REGTYPE), ("", b"{}", tarfile.REGTYPE)]),
    }  # fmt: skip


def test_a_hostile_archive_is_read_as_far_as_it_goes(tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_archives, tmp_path, amount(400))


def test_poisoned_tokens_are_refused_by_the_name_of_their_sample(data: Path, tmp_path: Path) -> None:
    """Codes out of range and latents a million times too large stand in good shards; training says where."""
    for poison in ("codes", "latents", "nan"):
        place = tmp_path / poison
        shutil.copytree(data, place / "data", ignore=shutil.ignore_patterns("tokens"))
        said = run(commands.train_poisoned, poison, place / "data", place / "run", folder=place)
        log = place / "run" / "train.log"
        heard = said + (log.read_text() if log.is_file() else "")
        assert "dialogue d0: " in heard, f"{poison}: nobody is told; it said {said!r}"
        assert "shard-" in heard


def test_random_words_as_made_with_are_refused(data: Path, tmp_path: Path) -> None:
    encoded(data, tmp_path)
    judge(kept_tokens, tmp_path)


def kept_tokens(folder: Path) -> Iterator[Case]:
    """`made_with.json` of tokens alone, with every value in turn."""
    for path in sorted((folder / "tokens").glob("*/made_with.json")):
        good = path.read_bytes()
        for seed, value in enumerate(VALUES):
            told = json.loads(good)
            key = random.Random(seed).choice(sorted(told))
            path.write_text(json.dumps(told | {key: "@"}).replace('"@"', value))
            yield Case(f"{path.parent.name[:8]} {key}={value[:30]}", partial(TokenFolder, folder), str(path.parent))
        path.write_bytes(good)
