"""Damaged and foreign checkpoints: none is loaded, none is executed, and the one before is gone on with."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.faults import commands
from tests.faults.children import run
from tests.faults.law import Case, judge
from tests.faults.mutations import damaged
from tests.faults.test_kills import assert_same_run
from vidchat.training.checkpoint_file import CheckpointError, read_checkpoint


def damaged_checkpoints(folder: Path, checkpoint: Path, count: int) -> Iterator[Case]:
    """One that is damaged anywhere, if only by a bit, is refused."""
    good, path = checkpoint.read_bytes(), folder / checkpoint.name
    for seed in range(count):
        how, data = damaged(good, seed)
        if data != good:
            path.write_bytes(data)
            yield Case(
                f"checkpoint {seed} ({how})", partial(read_checkpoint, path), path.name, (CheckpointError,), "fail"
            )


def test_a_damaged_checkpoint_is_refused(trained: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(damaged_checkpoints, tmp_path, newest(trained), amount(300))


def newest(run_folder: Path) -> Path:
    return max(run_folder.glob("checkpoints/*.ckpt"))


class Evil:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def foreign_checkpoints(folder: Path, checkpoint: Path) -> Iterator[Case]:
    """Files under a checkpoint's name that hold calls, or too much, or something else."""
    import os

    canary, path = folder / "canary", folder / "step_00000001.ckpt"
    state = torch.load(checkpoint, weights_only=True, mmap=False)
    for call in ((os.system, f"touch {canary}"), (eval, f"open({str(canary)!r}, 'w')"), (Path.touch, canary)):
        for place in ("whole", "ema", "config", "state_dict"):
            held = Evil(*call) if place == "whole" else state | {place: Evil(*call)}
            for save in (torch.save, partial(torch.save, _use_new_zipfile_serialization=False), _pickle):
                save(held, path)
                name = f"{call[0].__name__} as {place}"
                yield Case(
                    name, partial(read_checkpoint, path), path.name, (CheckpointError,), "fail", partial(_no, canary)
                )
    others: dict[str, Any] = {"a list": [1], "a tensor": torch.ones(3), "nothing": None, "an empty dict": {}}
    others |= {
        f"{key} is {value!r}": state | {key: value} for key in ("ema", "config", "state_dict") for value in (None, 3)
    }
    for name, held in others.items():
        torch.save(held, path)
        yield Case(name, partial(read_checkpoint, path), path.name, (CheckpointError,), "fail")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("step/data.pkl", bytes(2_000_000_000))
    yield Case("a zip bomb", partial(read_checkpoint, path), path.name, (CheckpointError,), "fail")
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(10_000),
        "a zip's end": b"PK\5\6" + bytes(18),
    }.items():
        path.write_bytes(data)
        yield Case(name, partial(read_checkpoint, path), path.name, (CheckpointError,), "fail")
    path.unlink()
    path.mkdir()
    yield Case("a folder", partial(read_checkpoint, path), path.name, (CheckpointError,), "fail")


def _pickle(held: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(held))


def _no(canary: Path) -> None:
    assert not canary.exists(), "it was executed"


def test_a_foreign_checkpoint_is_refused_and_never_executed(trained: Path, tmp_path: Path) -> None:
    judge(foreign_checkpoints, tmp_path, newest(trained))


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(data: Path, trained: Path, tmp_path: Path) -> None:
    """Whatever happened to the newest, the run ends where the undisturbed one does, and the older one is not lost."""
    for name, spoil in SPOILT.items():
        torn = tmp_path / name
        shutil.copytree(trained, torn)
        spoil(newest(torn))
        assert run(commands.train, data, torn, folder=tmp_path) == "", name
        for path in torn.glob("checkpoints/*"):  # what was set aside may stay
            if path.name not in {other.name for other in trained.glob("checkpoints/*")}:
                path.unlink()
        assert_same_run(torn, trained)


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _not_finite(path: Path) -> None:
    state = torch.load(path, weights_only=True)
    next(iter(state["state_dict"].values())).fill_(torch.nan)
    torch.save(state, path)


SPOILT: dict[str, Callable[[Path], object]] = {
    "flipped": _flip_a_bit,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "not_finite": _not_finite,
}
