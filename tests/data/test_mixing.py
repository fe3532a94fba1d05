"""Several data sets as one: mixed, of two shapes, with damaged shards, and without the clips they were made of."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from folders import film, make_folder, write_manifest
from test_datamodule import module, words
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.data.loading.datamodule import DialogueDataModule, Source
from vidchat.data.media.read import Media
from vidchat.data.media.write import write_clip
from vidchat.data.tokens.media_shards import copy_manifest, pack
from vidchat.data.tokens.shards import problems


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight dialogues, of which half are of the pretraining tier."""
    folder = make_folder(tmp_path_factory.mktemp("data"), ["train"] * 8 + ["val"])
    lines = [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]
    write_manifest(folder, [line | {"tier": "pretrain" if k % 2 else "sft"} for k, line in enumerate(lines)])
    return folder


def same(one: ChunkBatch, other: ChunkBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def texts(data: DialogueDataModule, batches: int) -> list[str]:
    drawn: list[str] = []
    for batch in islice(iter(data.train_dataloader()), batches):
        drawn += words(batch.conditions["text"])
    return drawn


def test_tiers_and_folders_are_drawn_by_weight(root: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path, ["train", "train", "val"])
    sources = [
        Source(root, tier="sft", weight=6),
        Source(root, tier="pretrain", weight=3),
        Source(other, weight=1),
    ]
    data = module(root, sources=sources, text="answer", batch_size=5)
    assert isinstance(data, DialogueDataModule)
    make, order = data.train  # type: ignore[misc]
    counts = Counter(make.samples[p.item].source for k in range(400) for p in order.batch(k, 5))
    assert [round(counts[source] / 2000, 2) for source in range(3)] == [0.6, 0.3, 0.1]
    assert {sample.dialogue.tier for sample in make.samples if sample.source == 1} == {"pretrain"}
    assert len(texts(data, 3)) == 15
    state = data.state_dict() | {"consumed": 4}
    resumed = module(root, sources=sources, text="answer", batch_size=5, num_workers=2)
    resumed.load_state_dict(state)
    assert texts(resumed, 4) == texts(data, 8)[20:]


def test_a_changed_mix_or_number_of_ranks_is_reported(root: Path) -> None:
    data = module(root)
    state = data.state_dict()
    with pytest.warns(UserWarning, match="its mix or its lengths are not those of the checkpoint"):
        module(root, tier="sft").load_state_dict(state)
    with pytest.warns(UserWarning, match=r"4 ranks of 2 answers, and this run has 1 of 2: resuming is not exact"):
        data.load_state_dict(state | {"ranks": 4, "consumed": 10})
    assert data.consumed == 40
    four = module(root, batch_size=8)
    with pytest.warns(UserWarning, match="holds the same answers"):
        four.load_state_dict(state | {"ranks": 4, "consumed": 10})
    assert four.consumed == 10


def test_training_needs_no_clips_once_they_are_encoded(root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"initiator": True, "voice": True, "text": "answer"}
    whole = list(islice(iter(module(root, **options).train_dataloader()), 5))
    copy_manifest(root, tmp_path / "set")
    shutil.copytree(root / "tokens", tmp_path / "set" / "tokens")
    alone = list(islice(iter(module(tmp_path / "set", **options).train_dataloader()), 5))
    assert all(same(one, other) for one, other in zip(whole, alone, strict=True))
    shorter = next(iter(module(tmp_path / "set", **options, max_chunks=3).train_dataloader()))
    assert shorter.latents.shape[1] == 5
    assert shorter.heard_latents.shape[1] == 3


def test_clips_in_media_shards_are_clips_like_others(root: Path, tmp_path: Path) -> None:
    report, whole = pack(root, tmp_path / "packed", 20_000)
    assert not report.skipped
    assert whole["shards"] > 3
    assert whole["samples"] == 18
    assert not list(problems(tmp_path / "packed" / "media"))
    tars = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed" / "media").glob("*.tar")}
    pack(root, tmp_path / "packed", 20_000)
    assert all(path.stat().st_mtime_ns == time for path, time in tars.items())  # nothing is written twice
    for one, other in zip(
        islice(iter(module(root).train_dataloader()), 4),
        islice(iter(module(tmp_path / "packed").train_dataloader()), 4),
        strict=True,
    ):
        assert same(one, other)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_are_skipped_and_counted_by_shard(tmp_path: Path, workers: int) -> None:
    module(make_folder(tmp_path, ["train"] * 8))
    (shard,) = (tmp_path / "tokens").glob("latents-*/shard-*.tar")
    index = json.loads(shard.with_suffix(".json").read_text())
    offset, size, *_ = index["pieces"][1]["samples"][0]
    data = bytearray(shard.read_bytes())
    data[offset + size // 2] ^= 1  # one bit, in the middle of the second answer
    shard.write_bytes(bytes(data))
    damaged = module(tmp_path, text="answer", num_workers=workers)
    drawn = Counter(texts(damaged, 8))
    assert drawn["a1"] == 0
    assert sum(drawn.values()) == 16
    ((name, count),) = damaged.damage().items()
    assert name.endswith(shard.name)
    assert count == 1
    damaged.teardown("fit")
    assert f"{shard.name}: 1 samples could not be read" in (tmp_path / "tokens" / "report.txt").read_text()
    assert len(list(problems(shard.parent))) == 1
    shard.write_bytes(bytes(data)[: offset + size // 2])  # cut off: nearly all is gone, and the rest is still there
    rest = Counter(texts(module(tmp_path, text="answer", num_workers=workers), 4))
    assert set(rest) == {"a0"}


def test_frames_of_two_shapes_never_share_a_batch(tmp_path: Path) -> None:
    lines = []
    for k in range(6):
        shape = (32, 16) if k % 3 else (16, 32)
        levels = torch.randint(0, 255, (17, 3, *shape), dtype=torch.uint8)
        write_clip(tmp_path / f"{k}.mp4", levels, torch.zeros(17 * 640), 25, 16000)
        turn = {"role": "responder", "speaker": f"r{k}", "clip": f"{k}.mp4", "text": str(k)}
        lines.append({"id": f"d{k}", "branch": "single", "split": "val" if k > 3 else "train", "turns": [turn]})
    write_manifest(tmp_path, lines)
    data = module(tmp_path, prepare=False, text="answer", allow_portrait=True)
    data.encoder.size = (32, 16)
    data.prepare_data()
    data.setup()
    shapes = Counter(tuple(b.latents.shape[-2:]) for b in islice(iter(data.train_dataloader()), 40))
    assert shapes.keys() == {(16, 8), (8, 16)}  # half of the clips each
    assert 10 < shapes[16, 8] < 30
    assert {tuple(b.latents.shape[-2:]) for b in data.val_dataloader()} == {(16, 8)}


class Thinker:
    """What it makes of a clip is how many frames it has, for each frame."""

    def encode(self, media: Media) -> Tensor:
        count = len(media.frames)
        return torch.full((count, 2), float(count))

    def fingerprint(self) -> str:
        return "thinker"

    def to(self, device: Any) -> Thinker:
        return self

    def unload(self) -> None:
        pass


def test_a_thinkers_features_of_the_question_are_a_track_of_their_own(root: Path) -> None:
    data = module(root, features=2, thinker=Thinker(), text="answer")
    batch = next(iter(data.val_dataloader()))
    features = batch.conditions["features"]
    assert features.values.shape == (1, 29, 2)
    assert (features.values == 29).all()
    assert features.mask.all()
    assert batch.heard_latents is None
    assert {path.name.split("-")[0] for path in (root / "tokens").iterdir()} >= {"latents", "codes", "features"}


def test_padding_is_measured(root: Path, tmp_path: Path) -> None:
    lines = []
    for k in range(40):
        film(tmp_path / f"{k}.mp4", 5 + 4 * (k % 10))
        turn = {"role": "responder", "speaker": "r", "clip": f"{k}.mp4"}
        lines.append({"id": f"d{k}", "branch": "single", "turns": [turn]})
    write_manifest(tmp_path, lines)
    data = module(tmp_path, batch_size=4)
    assert data.padding() < 0.01
    chunks = padded = 0
    for batch in islice(iter(data.train_dataloader()), 10):
        chunks += int(batch.mask.sum())
        padded += batch.mask.numel()
    assert 1 - chunks / padded < 0.01
