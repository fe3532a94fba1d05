from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from folders import SIZE, Codec, Vae, film

from vidchat.data.tokens.encode import Sharding, fill, in_processes, on_ray
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.data.tokens.provenance import CacheError
from vidchat.data.tokens.samples import decode_sample
from vidchat.data.tokens.shards import ShardError, ShardWriter
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.dialogue import Clip

SMALL = Sharding(segments=3, bytes=16_000)
LENGTHS = (17, 21, 17, 9, 25, 21, 47)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("films")
    for k, frames in enumerate(LENGTHS):
        film(root / f"{k}.mp4", frames)
    (root / "bad.mp4").write_bytes(b"not a film")
    return root


@pytest.fixture
def root(films: Path, tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    for path in films.iterdir():
        (tmp_path / "root" / path.name).symlink_to(path)
    return tmp_path / "root"


def segments_of(root: Path) -> list[Segment]:
    """Seven good segments, one of them in three spans, and a bad one."""
    names = [*(f"{k}.mp4" for k in range(len(LENGTHS))), "bad.mp4"]
    return [Segment(Clip(root / name, "ann"), "spans" if name == "6.mp4" else "first", 4) for name in names]


def cache(root: Path, vae: Vae | None = None, audio: bool = True, longest: int = 4, **more: Any) -> TokenCache:
    return TokenCache(root, ClipEncoder(vae or Vae(), Codec() if audio else None, 25, SIZE), longest, **more)


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def undisturbed(root: Path, tmp_path: Path) -> dict[str, str]:
    fill(cache(root, folder=tmp_path / "whole"), segments_of(root), sharding=SMALL)
    return hashes(tmp_path / "whole")


def test_what_is_read_is_what_the_tokenizers_gave(root: Path) -> None:
    tokens, segments = cache(root), segments_of(root)
    assert fill(tokens, segments, sharding=SMALL).read == 7
    for segment in segments[:-1]:
        one_more = replace(segment, max_chunks=segment.max_chunks + (segment.part != "spans"))
        for k, span in enumerate(tokens.encoder.read(one_more)):
            (expected,) = tokens.encoder.encode([span])
            found = tokens.load(tokens.key(segment), k)
            assert torch.equal(found.latents, expected.latents)
            assert found.codes is not None
            assert expected.codes is not None
            assert torch.equal(found.codes, expected.codes)
            assert tokens.shapes(tokens.key(segment))[k] == tuple(expected.latents.shape)


def test_shards_are_tars_that_webdataset_reads_and_their_index_tells_the_truth(root: Path) -> None:
    tokens = cache(root)
    fill(tokens, segments_of(root), sharding=SMALL)
    for track in tokens.tracks.values():
        whole = json.loads((track.folder / "index.json").read_text())
        names = sorted(path.name for path in track.folder.glob("*.tar"))
        assert sorted(whole["files"]) == names
        assert whole["samples"] == 9
        assert len(names) > 2 or track.track == "codes"
        for name, entry in whole["files"].items():
            data = (track.folder / name).read_bytes()
            assert entry["bytes"] == len(data) <= SMALL.bytes
            assert entry["sha256"] == hashlib.sha256(data).hexdigest()
            with tarfile.open(track.folder / name) as tar:
                assert len(tar.getmembers()) == entry["samples"]
                assert all((member.mtime, member.uid, member.uname) == (0, 0, "") for member in tar)
        shards = webdataset.WebDataset([str(track.folder / name) for name in names], shardshuffle=False)
        samples = list(shards.map(decode_sample))
        assert len({(sample["key"], sample["span"]) for sample in samples}) == len(samples) == 9
        for sample in samples:
            expected = track.load(sample["key"], sample["span"])
            assert sample[track.track].dtype == expected.dtype
            assert torch.equal(sample[track.track], expected)


def test_a_missing_or_stale_summary_is_written_again(root: Path) -> None:
    fill(cache(root), segments_of(root), sharding=SMALL)
    paths = [track.folder / "index.json" for track in cache(root).tracks.values()]
    before = [path.read_text() for path in paths]
    paths[0].write_text(before[0].replace('"samples": 9', '"samples": 8', 1))
    paths[1].unlink()
    fill(cache(root), [])
    assert [path.read_text() for path in paths] == before


@pytest.mark.parametrize(
    ("sample", "sentence"),
    [
        ({"__key__": "clip", "mp4": b""}, "is no sample of tokens"),
        ({"__key__": "clip-000", "latents.safetensors": b"\0" * 9}, "clip-000 is damaged"),
    ],
)
def test_what_is_no_sample_of_tokens_is_refused_by_name(sample: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ShardError, match=sentence):
        decode_sample(sample)


def test_clips_of_one_shape_are_encoded_together_and_only_once(root: Path) -> None:
    vae = Vae()
    fill(cache(root, vae), segments_of(root))
    assert vae.calls == 4  # four lengths, of at most five chunks: one more than is read
    fill(cache(root, vae), segments_of(root))
    assert vae.calls == 4
    (root / "2.mp4").unlink()
    film(root / "2.mp4", 9)  # a changed clip is encoded again, and nothing else
    fill(cache(root, vae), segments_of(root))
    assert vae.calls == 5
    changed = cache(root)
    assert len(changed.load(changed.key(segments_of(root)[2])).latents) == 3
    (root / "2.mp4").unlink()  # and one that is gone is read all the same
    fill(cache(root, vae), segments_of(root))
    assert vae.calls == 5
    gone = cache(root)
    assert len(gone.load(gone.key(segments_of(root)[2])).latents) == 3


def test_a_stage_without_sound_and_one_with_it_share_latents(root: Path) -> None:
    vae = Vae()
    silent = cache(root, vae, audio=False)
    fill(silent, segments_of(root))
    assert silent.load(silent.key(segments_of(root)[0])).codes is None
    calls = vae.calls
    full = cache(root, vae)
    fill(full, segments_of(root))
    assert vae.calls == calls
    assert full.load(full.key(segments_of(root)[0])).codes is not None


def test_a_bad_clip_is_named_and_tried_again_only_when_it_changes(root: Path) -> None:
    report = fill(cache(root), segments_of(root))
    assert [where for where, _ in report.skipped] == ["bad.mp4"]
    assert "cannot be decoded" in str(fill(cache(root), segments_of(root)))
    assert len(list((root / "tokens").rglob("shard-*.tar"))) == 2
    (root / "bad.mp4").unlink()
    film(root / "bad.mp4", 17)
    assert fill(cache(root), segments_of(root)).read == 8


def test_longer_tokens_serve_shorter_segments_and_not_the_other_way(root: Path) -> None:
    fill(cache(root, longest=6), segments_of(root))
    assert cache(root, longest=4).longest == 6
    assert cache(root, longest=6).tracks["codes"].exists
    assert not cache(root, longest=7).tracks["latents"].exists


@pytest.mark.parametrize("seed", range(3))
def test_whenever_a_write_fails_resuming_gives_the_same_bytes(
    root: Path, tmp_path: Path, undisturbed: dict[str, str], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a random one of all writes and renames, again and again, until it is done."""

    class Killed(BaseException):
        pass

    chance, left = random.Random(seed), [0]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    replace, add, flush = os.replace, ShardWriter.add, ShardWriter.flush

    def counted(function: Any) -> Any:
        def run(*args: Any) -> Any:
            count()
            result = function(*args)
            count()
            return result

        return run

    monkeypatch.setattr(os, "replace", counted(replace))
    monkeypatch.setattr(ShardWriter, "add", counted(add))
    monkeypatch.setattr(ShardWriter, "flush", counted(flush))
    monkeypatch.setattr("vidchat.data.tokens.windows.WINDOW", 1)  # a segment at a time
    stops = 0
    while True:
        left[0] = chance.randint(1, 25)
        try:
            fill(cache(root, folder=tmp_path / "torn"), segments_of(root), sharding=SMALL)
            break
        except Killed:
            stops += 1
    assert stops > 5
    left[0] = 0
    fill(cache(root, folder=tmp_path / "whole1"), segments_of(root), sharding=SMALL)
    assert hashes(tmp_path / "torn") == hashes(tmp_path / "whole1")
    assert hashes(tmp_path / "torn") == undisturbed  # these stand-ins do not mind what is encoded with what


def test_many_processes_make_the_same_bytes(root: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    many = cache(root, folder=tmp_path / "many")
    report = fill(many, segments_of(root), workers=2, engine=in_processes, sharding=SMALL)
    assert report.read == 7
    assert hashes(tmp_path / "many") == undisturbed


def test_workers_of_any_engine_share_the_jobs(root: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    """An engine may run some workers late, twice, or again after they failed, as a cluster does."""

    def restless(function: Any, count: int) -> None:
        for number in (count - 1, 0, 0, *range(count)):
            function(number)

    fill(cache(root, folder=tmp_path / "any"), segments_of(root), workers=3, engine=restless, sharding=SMALL)
    assert hashes(tmp_path / "any") == undisturbed


class Other(Vae):
    def fingerprint(self) -> str:
        return "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vae": Other()}, r"latents.*tokenizer\.fingerprint=vae \(here other\)"),
        ({"dtype": "float16"}, r"dtype=float32 \(here float16\)"),
        ({"longest": 9}, r"longest=4 \(here 9\)"),
    ],
)
def test_tokens_of_other_settings_are_refused_by_the_names_of_their_keys(
    root: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fill(cache(root, folder=tmp_path / "set" / "tokens"), segments_of(root))
    segments = [
        Segment(Clip(tmp_path / "set" / segment.clip.path.name, "ann"), "first", 4) for segment in segments_of(root)
    ]
    with pytest.raises(CacheError, match=message):
        fill(cache(tmp_path / "set", **change), segments)
    # Where the clips are there, they are encoded anew, beside the others.
    fill(cache(root, **change), segments_of(root))
    assert cache(root, **change).tracks["latents"].exists


def test_the_size_the_rate_and_the_version_are_part_of_the_fingerprint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache(root, folder=tmp_path / "set" / "tokens"), segments_of(root))
    segment = Segment(Clip(tmp_path / "set" / "0.mp4", "ann"), "first", 4)
    larger = TokenCache(tmp_path / "set", ClipEncoder(Vae(), Codec(), 25, (32, 16)), 4)
    with pytest.raises(CacheError, match=r"size=\[16, 16\] \(here \[32, 16\]\)"):
        larger.refuse_stale([segment])
    monkeypatch.setattr("vidchat.data.tokens.provenance.VERSION", 99)
    with pytest.raises(CacheError, match=r"version=3 \(here 99\)"):
        cache(tmp_path / "set").refuse_stale([segment])


def test_a_cache_whose_record_was_changed_is_refused(root: Path) -> None:
    fill(cache(root), segments_of(root))
    made = cache(root).tracks["latents"].folder / "made_with.json"
    made.write_text(made.read_text().replace('"fps": 25', '"fps": 30'))
    with pytest.raises(CacheError, match=r"made_with\.json: was changed"):
        cache(root)


def test_half_precision_halves_the_bytes(root: Path) -> None:
    whole, half = cache(root), cache(root, dtype="float16")
    for one in (whole, half):
        fill(one, segments_of(root))
    key = whole.key(segments_of(root)[0])
    assert half.load(key).latents.dtype == torch.float16
    torch.testing.assert_close(half.load(key).latents.float(), whole.load(key).latents, atol=1e-3, rtol=1e-3)
    assert half.tracks["codes"].folder == whole.tracks["codes"].folder  # codes do not change


def test_a_ray_cluster_makes_the_same_bytes(root: Path, tmp_path: Path, undisturbed: dict[str, str]) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env=paths)
    try:
        fill(cache(root, folder=tmp_path / "ray"), segments_of(root), workers=2, engine=on_ray, sharding=SMALL)
    finally:
        ray.shutdown()
    assert hashes(tmp_path / "ray") == undisturbed
