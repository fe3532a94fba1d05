"""A run owns its folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training.fakes import NoisyModule, StreamModule, make_trainer
from vidchat.training.checkpoint import find_checkpoint, newest_first
from vidchat.training.run_folder import (
    RunFolderError,
    check_set_aside,
    finished_step,
    locked,
    mark_finished,
    set_aside,
    sweep_name,
)


def fit(folder: Path, steps: int, resume: str | None) -> None:
    """What train.py does with a folder."""
    path = find_checkpoint(resume, folder / "checkpoints")
    set_aside(folder, folder / "release", path)
    trainer = make_trainer(folder, steps, [], every=2)
    trainer.fit(NoisyModule(), datamodule=StreamModule(), ckpt_path=path, weights_only=True)
    (folder / "release").mkdir(exist_ok=True)
    (folder / "release" / "of").write_text(str(steps))
    mark_finished(folder, folder / "release", steps)


def names(folder: Path) -> list[str]:
    return [path.name for path in newest_first(folder / "checkpoints")]


def test_a_fresh_start_sets_the_old_run_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    fit(folder, 12, None)
    (folder / "data").mkdir()  # not the run's
    fit(folder, 3, None)
    assert names(folder) == ["step_00000003.ckpt", "step_00000002.ckpt"], "rotation looks at this run's alone"
    assert names(tmp_path / "run.old1") == ["step_00000012.ckpt", "step_00000010.ckpt"]
    assert (tmp_path / "run.old1" / "release" / "of").read_text() == "12"
    assert finished_step(tmp_path / "run.old1", tmp_path / "run" / "release") == 12
    assert f"the old run in {folder} is set aside in {tmp_path / 'run.old1'}" in caplog.text
    assert (folder / "data").is_dir()
    fit(folder, 4, "auto")
    assert names(folder)[0] == "step_00000004.ckpt", "the new run goes on"
    fit(folder, 2, None)
    assert names(tmp_path / "run.old2")[0] == "step_00000004.ckpt"


def test_going_on_from_an_earlier_checkpoint_sets_aside_the_later_ones(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(folder, 6, None)
    fit(folder, 5, str(folder / "checkpoints" / "step_00000004.ckpt"))
    assert names(folder) == ["step_00000005.ckpt", "step_00000004.ckpt"]
    assert names(tmp_path / "run.old1") == ["step_00000006.ckpt"]
    fit(tmp_path / "other", 7, str(folder / "checkpoints" / "step_00000005.ckpt"))
    assert names(folder)[0] == "step_00000005.ckpt", "another folder's run stays as it is"
    fit(tmp_path / "other", 6, str(folder / "checkpoints" / "step_00000005.ckpt"))
    assert names(tmp_path / "other") == ["step_00000006.ckpt"]
    assert names(tmp_path / "other.old1")[0] == "step_00000007.ckpt"


def test_a_folder_where_nothing_was_trained_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.log").touch()
    set_aside(tmp_path / "run", tmp_path / "run" / "release", None)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("key", ["init_from", "video_vae"])
def test_what_the_new_run_starts_from_is_not_set_aside(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "run"
    fit(folder, 2, None)
    config: dict[str, Any] = {
        "output_dir": str(folder), "resume": None, "init_from": None, "backbone_from": None, "video_vae": None,
        "stage": {"export": str(folder / "release"), "tokenizers": ["video_vae"]},
    }  # fmt: skip
    check_set_aside(config, None)
    inside = str(folder / "release")
    config |= {key: {"directory": inside} if key == "video_vae" else inside}
    with pytest.raises(RunFolderError, match=f"{key}.*is part of the run in .* set output_dir to a new folder"):
        check_set_aside(config, None)
    check_set_aside(config, folder / "checkpoints" / "step_00000002.ckpt")


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    ready, worker = context.Event(), context.Value("i")

    def hold() -> None:
        with locked(tmp_path):
            child = os.fork()  # such as a worker that loads data and outlives its parent for a while
            if child:
                worker.value = child
                ready.set()
            time.sleep(60)

    first = context.Process(target=hold)
    first.start()
    assert ready.wait(20)
    message = f"another run is in .*process {first.pid} on .*output_dir"
    with pytest.raises(RunFolderError, match=message), locked(tmp_path):
        pass
    monkeypatch.setattr("vidchat.training.run_folder._rank", lambda: 1)
    with locked(tmp_path):  # a further rank of the first
        pass
    monkeypatch.undo()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    for _ in range(2):
        with locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()
    os.kill(worker.value, signal.SIGKILL)


def test_names_of_a_sweep_s_jobs_are_names_of_folders() -> None:
    assert sweep_name("a=1,b.c=2e-3") == "a=1,b.c=2e-3"
    assert "/" not in sweep_name("data.root=/a/b")
    long = [sweep_name("x" * 5000 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) < 100 for name in long)
