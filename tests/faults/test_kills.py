"""Twenty kills: the same command goes on afterwards, to the result of one that was never killed, bit for bit.

Half the moments are events of the file system (before the n-th file is opened, renamed or removed), half lie inside a
write, of a checkpoint above all.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.faults import commands
from tests.faults.children import Moment, events_of, run
from vidchat.release import load_release
from vidchat.training.checkpoint_file import read_checkpoint
from vidchat.training.metrics import read_metrics

CLOCK = ("speed/", "time")  # logged values that no two runs share


def files(folder: Path) -> dict[str, Any]:
    """What a folder's files hold, by name; of safetensors the tensors, whose header may come in any order."""
    return {path.relative_to(folder).as_posix(): _held(path) for path in folder.rglob("*") if path.is_file()}


def _held(path: Path) -> Any:
    if path.suffix != ".safetensors":
        return path.read_bytes()
    return {name: (value.dtype, value.tolist()) for name, value in load_file(path).items()}


def same(one: Any, other: Any) -> bool:
    """Whether two checkpoints hold the same values, to the bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_training_goes_on_through_kills_to_the_same_weights(
    data: Path, trained: Path, tmp_path: Path, amount: Callable[[int], int]
) -> None:
    chance, kills, torn = random.Random(0), 0, tmp_path / "run"
    events = events_of(commands.train, data, tmp_path / "counted", folder=tmp_path, below=tmp_path / "counted")
    while kills < amount(8):
        event = chance.randrange(events // 2)  # of what is left
        inside = chance.randrange(150_000, 500_000) if kills % 2 else None  # longer than any file but a checkpoint
        ended = run(commands.train, data, torn, folder=tmp_path, moment=Moment(torn, event, inside))
        kills += ended == "killed"
        for path in torn.glob("checkpoints/*.ckpt"):
            read_checkpoint(path)
        if ended == "":
            assert_same_run(torn, trained)
            torn = tmp_path / f"run{kills}"  # and from the beginning
    assert run(commands.train, data, torn, folder=tmp_path) == ""
    assert_same_run(torn, trained)
    assert not any((tmp_path / "tmp").iterdir()), "something was left in the directory of temporary files"


def assert_same_run(torn: Path, whole: Path) -> None:
    assert files(torn).keys() == files(whole).keys()
    one, other = (read_metrics(folder / "metrics.csv") for folder in (torn, whole))
    values = [name for name in other if not name.startswith(CLOCK)]
    assert values
    assert {name: one[name] for name in values} == {name: other[name] for name in values}
    newest = max(whole.glob("checkpoints/*.ckpt")).name
    states = [read_checkpoint(folder / "checkpoints" / newest) for folder in (torn, whole)]
    for state in states:
        del state["config"]  # which names the folder
    assert same(*states)
    assert files(torn / "release") == files(whole / "release")


def test_encoding_goes_on_through_kills_to_the_same_shards(
    data: Path, tmp_path: Path, amount: Callable[[int], int]
) -> None:
    assert run(commands.encode, data, tmp_path / "whole", folder=tmp_path) == ""
    torn, chance, kills = tmp_path / "torn", random.Random(0), 0
    events = events_of(commands.encode, data, tmp_path / "counted", folder=tmp_path, below=tmp_path / "counted")
    while kills < amount(4):
        inside = chance.randrange(1000, 8000) if kills % 2 else None
        moment = Moment(torn, chance.randrange(events // 3), inside)
        ended = run(commands.encode, data, torn, folder=tmp_path, moment=moment)
        kills += ended == "killed"
        if ended == "":
            break
    assert run(commands.encode, data, torn, folder=tmp_path) == ""
    assert files(torn) == files(tmp_path / "whole")
    encoded, needed = (len(path.with_suffix(".log").read_text()) for path in (torn, tmp_path / "whole"))
    assert encoded <= needed + 2 * 2 * kills, "a kill loses at most the clip under way, of two tracks"


def test_an_export_on_top_of_a_good_release_is_all_or_nothing(
    trained: Path, tmp_path: Path, amount: Callable[[int], int]
) -> None:
    good, target = trained / "release", tmp_path / "exports" / "release"
    (tmp_path / "exports").mkdir()
    assert run(commands.export, good, target, folder=tmp_path) == ""
    whole = files(tmp_path / "exports")
    events = events_of(commands.export, good, target, folder=tmp_path, below=tmp_path / "exports")
    chance, kills = random.Random(0), 0
    while kills < amount(4):
        inside = chance.randrange(10_000, 70_000) if kills % 2 else None
        moment = Moment(tmp_path / "exports", 0 if inside else chance.randrange(events), inside)
        kills += run(commands.export, good, target, folder=tmp_path, moment=moment) == "killed"
        load_release(target)
    assert run(commands.export, good, target, folder=tmp_path) == ""
    assert files(tmp_path / "exports") == whole


def test_an_answer_appears_whole_or_not_at_all(
    data: Path, trained: Path, tmp_path: Path, amount: Callable[[int], int]
) -> None:
    (tmp_path / "answers").mkdir()
    output = tmp_path / "answers" / "out.mp4"
    words = [trained / "release", data / "initiator0.mp4", output]
    assert run(commands.answer, *words, folder=tmp_path) == ""
    whole = files(tmp_path / "answers")
    size = len(whole["out.mp4"])
    events = events_of(commands.answer, *words, folder=tmp_path, below=tmp_path / "answers")
    chance, kills = random.Random(0), 0
    while kills < amount(4):
        inside = chance.randrange(size // 4, size) if kills % 2 else None
        moment = Moment(tmp_path / "answers", 0 if inside else chance.randrange(events), inside)
        kills += run(commands.answer, *words, folder=tmp_path, moment=moment) == "killed"
        assert output.read_bytes() == whole["out.mp4"], "the answer that was there is gone"
    assert run(commands.answer, *words, folder=tmp_path) == ""
    assert files(tmp_path / "answers") == whole
