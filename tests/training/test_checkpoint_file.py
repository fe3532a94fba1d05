"""Checkpoints on the disk: damage is noticed, nothing good goes before something better was verified."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.deaths import deaths
from tests.runtime.test_atomic import small_disk
from tests.training.fakes import NoisyModule, Recorder, StreamModule, make_trainer
from vidchat.training import checkpoint_file
from vidchat.training.checkpoint import Checkpoints, find_checkpoint, newest_first
from vidchat.training.checkpoint_file import (
    CheckpointError,
    damage_of,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from vidchat.training.run_folder import clean_up


def checkpoint(value: float) -> dict[str, Any]:
    return {"ema": {}, "config": {}, "weights": torch.full((100,), value)}


def fit(folder: Path, steps: int, callbacks: Any = (), every: int = 2, **kwargs: Any) -> NoisyModule:
    module = NoisyModule(seed=3)
    newest = find_checkpoint("auto", folder / "checkpoints")
    trainer = make_trainer(folder, steps, list(callbacks), every=every, **kwargs)
    trainer.fit(module, datamodule=StreamModule(), ckpt_path=newest, weights_only=True)
    return module


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.ckpt"
    write_checkpoint(checkpoint(1.0), path)
    assert damage_of(path) is None
    assert torch.equal(read_checkpoint(path)["weights"], torch.ones(100))
    assert torch.equal(torch.load(path, weights_only=True)["weights"], torch.ones(100)), "torch reads it, too"
    whole, rng = path.read_bytes(), random.Random(0)
    places = [*rng.sample(range(len(whole)), 60), *range(len(whole) - 45, len(whole))]
    spoilt = [whole[:k] + bytes([whole[k] ^ 1 << rng.randrange(8)]) + whole[k + 1 :] for k in places]
    spoilt += [whole[:k] for k in (0, 1, 20, len(whole) // 2, len(whole) - 1)]
    spoilt += [whole + b"x", b"\0" * len(whole), whole[-60:], whole[: len(whole) // 2] * 2]
    several_disks = bytearray(whole)  # a lost hash, and an end that zipfile refuses by an error of its own
    several_disks[whole.rindex(b"PK\6\7") + 16] = 2
    several_disks[-1] = ord("-")
    spoilt.append(bytes(several_disks))
    for data in spoilt:
        path.write_bytes(data)
        assert damage_of(path) is not None
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            read_checkpoint(path)
    torch.save(checkpoint(1.0), path)
    with pytest.raises(CheckpointError, match=r"carries no hash: an earlier version of train.py wrote it.*init_from"):
        read_checkpoint(path)


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:900] + b"\1\2" + data[902:]])
def test_a_damaged_newest_is_set_aside_with_a_sentence_and_the_one_before_is_used(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tmp_path / "whole", 6)
    fit(tmp_path / "run", 4)
    newest, before = newest_first(tmp_path / "run" / "checkpoints")
    newest.write_bytes(damage(newest.read_bytes()))
    resumed = fit(tmp_path / "run", 6)
    assert "step_00000004.ckpt is damaged" in caplog.text
    assert f"{before.name} is used" in caplog.text
    names = sorted(path.name for path in before.parent.iterdir())
    assert names == ["step_00000004.ckpt", "step_00000004.ckpt.damaged", "step_00000006.ckpt"]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_newest_checkpoint_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    names = ["step_100000000.ckpt", "step_99999999.ckpt", "step_00000003.ckpt"]
    for name in (*names, ".step_999999999.ckpt.tmp", "step_999999999.ckpt.damaged", "other.ckpt"):
        (tmp_path / name).touch()
    assert [path.name for path in newest_first(tmp_path)] == names


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    for step in (1, 2):
        (tmp_path / f"step_0000000{step}.ckpt").touch()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"step_00000002.ckpt is damaged .* resume=null"):
            find_checkpoint("auto", tmp_path)
    with pytest.raises(CheckpointError, match=r"resume=.*step_00000001.ckpt is damaged"):
        find_checkpoint(str(tmp_path / "step_00000001.ckpt"), tmp_path)


def test_nothing_is_removed_before_what_is_newer_was_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tmp_path, 4)
    good = newest_first(tmp_path / "checkpoints")
    monkeypatch.setattr(checkpoint_file, "_damage_in", lambda file: "a bad disk" if file.writable() else None)
    with pytest.raises(CheckpointError, match="gives back something else than was written"):
        fit(tmp_path, 8)
    assert newest_first(tmp_path / "checkpoints") == good
    assert all(damage_of(path) is None for path in good)


def test_a_full_disk_is_an_error_that_names_the_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, 4)
    good = newest_first(tmp_path / "checkpoints")
    with pytest.raises(OSError) as caught, small_disk(5000):
        fit(tmp_path, 8)
    assert caught.value.filename == str(tmp_path / "checkpoints" / "step_00000006.ckpt")
    assert sorted((tmp_path / "checkpoints").iterdir()) == sorted(good)


def test_weights_that_are_not_finite_are_not_saved_and_end_the_run(tmp_path: Path) -> None:
    module = NoisyModule(seed=3)

    def spoil() -> None:
        with torch.no_grad():
            module.network[2].bias.fill_(torch.inf)

    trainer = make_trainer(tmp_path, 4, [Recorder(at=3, then=spoil)], every=2, limit_val_batches=0)
    with pytest.raises(CheckpointError, match=r"at step 4 network.2.bias is not finite in 1 of 1 values"):
        trainer.fit(module, datamodule=StreamModule())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002.ckpt"]


def test_killed_at_any_moment_there_is_a_good_checkpoint(tmp_path: Path) -> None:
    old, new = tmp_path / "checkpoints" / "step_00000001.ckpt", tmp_path / "checkpoints" / "step_00000002.ckpt"
    old.parent.mkdir()
    prune = Checkpoints(old.parent, every=1, keep=1)._prune

    def save() -> None:
        write_checkpoint(checkpoint(2.0), new)
        prune(new)

    write_checkpoint(checkpoint(1.0), old)
    for _ in deaths(save):
        newest = find_checkpoint("auto", old.parent)
        assert newest is not None
        assert float(read_checkpoint(newest)["weights"][0]) == (1.0 if newest == old else 2.0)
        clean_up(tmp_path, tmp_path / "release")
        assert not list(old.parent.glob(".*")), "orphans are removed"
        new.unlink(missing_ok=True)
        write_checkpoint(checkpoint(1.0), old)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_copy_is_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, overlaps, under_way, weights = threading.Event(), [], [], {}
    write = checkpoint_file.write_checkpoint

    def slow(state: dict[str, Any], path: Path) -> None:
        under_way.append(path)
        overlaps.append(len(under_way))
        assert go_on.wait(20), "training waited for the writing"
        write(state, path)
        under_way.remove(path)

    class Watch(Recorder):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            weights[trainer.global_step] = pl_module.network[0].weight.clone()
            if trainer.global_step == 3:
                go_on.set()

    monkeypatch.setattr(checkpoint_file, "write_checkpoint", slow)
    fit(tmp_path, 5, [Watch()], limit_val_batches=0, keep=3)
    assert overlaps == [1, 1, 1], "one at a time"
    for path in newest_first(tmp_path / "checkpoints"):
        state = load_checkpoint(path)
        assert torch.equal(state["state_dict"]["network.0.weight"], weights[state["global_step"]])
    assert len(os.listdir(tmp_path / "checkpoints")) == 3
