"""Errors that a user can correct are one sentence, bugs have a traceback, in every command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from vidchat.cli import app
from vidchat.data.folder import FolderError
from vidchat.dialogue import Clip
from vidchat.playground.people.espeak import SpeechError
from vidchat.runtime.errors import user_errors, user_message

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("error", [FolderError("x: is bad"), SpeechError("x: is bad")])
def test_this_packages_own_errors_are_sentences(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: x: is bad$"), user_errors():
        raise error
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(type(error)), user_errors():
        raise error


def test_so_is_what_the_system_says_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"^error: {tmp_path}/a: No such file or directory$"), user_errors():
        (tmp_path / "a").read_text()


def test_bugs_and_what_typer_raises_pass() -> None:
    for error in (ValueError("not raised by this package"), KeyError("x"), OSError("without a path"), typer.Exit(3)):
        with pytest.raises(type(error)) as caught, user_errors():
            raise error
        assert caught.value is error
    with pytest.raises(TypeError), user_errors():
        Clip()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("data ingest no -o x/clips.parquet", "no such annotation folder"),
        ("data ingest no source=seamless_interaction -o x/clips.parquet", "holds no .tar"),
        ("data ingest no source=folder -o x/clips.parquet", "no such folder"),
        ("data cut no no -o x", "no such manifest"),
        ("data branches no -o x", "no such manifest"),
        ("data stats no", "does not exist"),
        ("data show no", "no such data folder"),
        ("data encode no", "no such data folder"),
        ("data encode . video_vae=no", "Could not find 'video_vae/no'"),
        ("data encode . audio_codec.codeboks=4", "did you mean 'audio_codec.codebooks'?"),
        ("data pack no -o x", "no such data folder"),
        ("data verify no", "holds no shards"),
        ("bench make no -o x", "no such data folder"),
        ("bench make dialogues.jsonl clips=no -o x", "give the folder of its clips by clips=FOLDER"),
        ("bench score no systems.a=no -o x", "has no pairs.jsonl"),
        ("bench report no -o x", "holds no results"),
        ("bench ablation . rows.dyadic:none=. -o x", "has no pairs.jsonl"),
        ("bench ablation no rows.dyadic:none=. -o x", "has no pairs.jsonl"),
        ("bench candidates no --rendered", "has no pairs.jsonl"),
    ],
)
def test_a_wrong_path_is_told_in_one_sentence(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dialogues.jsonl").touch()
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert len(done.output.strip().splitlines()) == 1, done.output
    assert message in done.output


def test_what_torch_says_when_a_rank_has_died_is_a_sentence() -> None:
    said = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:39660: Connection reset by peer."
    for error in (RuntimeError(said), torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0.")):
        message = user_message(error)
        assert message is not None
        assert message.startswith("another rank has ended")
    assert user_message(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-m vidchat data stats no", "does not exist"),  # Typer's way out, and below Hydra's
        ("train.py stage=pretrain_visual data=folder data.root=no", "data.root=no is no folder"),
        ("infer.py checkpoint=no reference=no output=no.mp4", "no does not exist"),
    ],
)
def test_nothing_else_is_printed(words: str, message: str, tmp_path: Path) -> None:
    more = [f"output_dir={tmp_path}"] if words.startswith("train") else []
    done = subprocess.run([sys.executable, *words.split(), *more], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not done.stdout
