"""Wrong requests are refused in one sentence, before any other work and before a file is overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image

from vidchat.cli import infer as infer_script
from vidchat.cli.overrides import INFER_PATHS, literally
from vidchat.conditions.text import MAX_TEXT
from vidchat.data.media.read import MediaError, write_clip
from vidchat.generation.answer import QuestionError
from vidchat.generation.request import check_output
from vidchat.runtime.devices import DeviceError, usable
from vidchat.runtime.errors import user_message

ROOT = Path(__file__).parents[2]


@pytest.fixture
def words(tmp_path: Path, release_folder: Path) -> list[str]:
    """Overrides of a valid request."""
    write_clip(tmp_path / "a.mp4", torch.zeros(30, 3, 16, 16, dtype=torch.uint8), torch.zeros(30 * 640), 25, 16000)
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "b.png")
    paths = {"initiator": tmp_path / "a.mp4", "reference": tmp_path / "b.png", "output": tmp_path / "out.mp4"}
    others = [f"checkpoint={release_folder}", "text=hi", "device=cpu"]
    return [f"{key}={value}" for key, value in paths.items()] + others


def composed(words: list[str], *more: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("infer", literally([*words, *more], INFER_PATHS))


def respond(words: list[str], *more: str) -> None:
    infer_script.answer_question(composed(words, *more))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seconds=nan", "seconds=nan"),
        ("seconds=inf", "at most 3600"),
        ("seconds=1e9", "at most 3600"),
        ("seconds=0", "more than 0"),
        ("seconds=-1", "more than 0"),
        ("seconds=soon", "seconds=soon"),
        ("seconds=true", "seconds=True"),
        (f"seconds={10**400}", "at most 3600"),
        ("listen=perhaps", "listen=perhaps must be true or false"),
        ("film=out.mkv", "film=out.mkv must end in .mp4"),
        ("settings=3", "settings=3 must be a group of values"),
        ("settings.sampling=null", "settings.sampling=None must be a group of values"),
        ("settings.sampling.codes=1.5", "settings.sampling.codes=1.5 must be a group of values"),
        (f"settings.sampling.sets={10**400}", "sets"),
        ("settings.sampling.sets=1001", "sets"),
        ("settings.sampling.flow_steps=1002", "flow_steps"),
        (f"settings.sampling.temperature={10**400}", "temperature"),
        ("settings.sampling.temperature=1e30", "temperature"),
        ("settings.sampling.guidance=1e30", "guidance"),
        (f"settings.sampling.codes.temperature={10**400}", "temperature"),
        (f"scores={{dover: {10**400}}}", "scores.dover=1"),
        ("scores={dover: 1e30}", "scores.dover=1e"),
        ("settings.sampling.sets=0", "sets"),
        ("settings.sampling.sets=-3", "sets"),
        ("settings.sampling.sets=1.5", "sets"),
        ("settings.sampling.flow_steps=0", "flow_steps"),
        ("settings.sampling.temperature=-1", "temperature"),
        ("settings.sampling.temperature=nan", "temperature"),
        ("settings.sampling.guidance=inf", "guidance"),
        ("settings.sampling.noise_level=2", "noise_level"),
        ("settings.sampling.codes.temperature=-1", "temperature"),
        ("settings.sampling.codes.top_p=0", "top_p"),
        ("settings.sampling.codes.top_k=-1", "top_k"),
        ("settings.window=0", "settings.window"),
        ("settings.window=many", "settings.window"),
        ("settings.seed=-1", "settings.seed"),
        ("settings.seed=1e30", "settings.seed"),
        ("scores={dover: nan}", "scores.dover=nan"),
        ("scores={dover: high}", "scores.dover=high"),
        ("scores=3", "scores=3"),
        ("device=cuda:99", "device=cuda:99"),
        ("device=gpu", "device=gpu is not known"),
        ("device=meta", "device=meta cannot be used"),
        ("precision=8", "precision=8"),
        ("text=" + "x" * (MAX_TEXT + 1), f"{MAX_TEXT + 1} tokens and a model reads at most {MAX_TEXT}"),
        ("text=", "this model needs a text to speak"),
        ("text=\udcff", "is not valid UTF-8"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(words: list[str], word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=message) as caught:
        respond(words, word)
    sentence = user_message(caught.value)
    assert sentence is not None, caught.value
    assert "\n" not in sentence
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.png"], "nothing is left behind"


def test_texts_that_look_like_config_values_are_read_as_text(words: list[str], tmp_path: Path) -> None:
    assert infer_script.question_of(composed(words, "scores={dover: 1.5}")).scores == {"dover": 1.5}
    for text in ("3", "true", "null", "???", "it's ${x}, \\ok", "x" * MAX_TEXT):
        respond(words, f"text={text}", "seconds=0.1", "settings.sampling.sets=1", "settings.sampling.flow_steps=2")
        assert (tmp_path / "out.mp4").stat().st_size > 0


def test_an_answer_never_overwrites_its_inputs(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    os.link(tmp_path / "a.mp4", tmp_path / "hard.mp4")
    (tmp_path / "sub").mkdir()
    before = (tmp_path / "a.mp4").read_bytes()
    for name in ("a.mp4", "link.mp4", "hard.mp4", "sub/../a.mp4"):
        with pytest.raises(QuestionError, match="itself, which would be overwritten"):
            respond(words, f"output={tmp_path / name}")
    with pytest.raises(QuestionError, match="itself"):
        respond(words, f"voice={tmp_path / 'v.mp4'}", f"output={tmp_path / 'v.mp4'}")
    assert (tmp_path / "a.mp4").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder; give the file to write"),
        ("x.mkv", "must end in .mp4"),
        ("x", "must end in .mp4"),
        ("a.mp4/x.mp4", "a.mp4 is a file"),
        ("pipe.mp4", "is not a regular file"),
        ("x" * 240 + ".mp4", "is not a possible file name"),
        ("x\0.mp4", "is not a possible file name"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused(words: list[str], tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(QuestionError, match=message):
        respond(words, f"output={tmp_path / name}", "checkpoint=nowhere")


def test_missing_files_are_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for key in ("initiator", "reference", "voice"):
        for name in ("loop.mp4", "x\0.mp4", "y" * 300, "gone"):
            with pytest.raises(MediaError, match="does not exist"):
                respond(words, f"{key}={tmp_path / name}")
    respond(words, f"output={tmp_path / 'loop.mp4'}", "seconds=0.1")
    assert (tmp_path / "loop.mp4").is_file(), "a broken link is replaced"


def test_names_with_a_meaning_to_ffmpeg_are_file_names(words: list[str], tmp_path: Path) -> None:
    for name in ("http:.mp4", "pipe:1.mp4", "o%03d.mp4", "-.mp4"):
        respond(words, f"output={tmp_path / name}", "seconds=0.1")
        assert (tmp_path / name).stat().st_size > 0


def test_a_film_is_no_other_file_and_shows_two_people(words: list[str], tmp_path: Path) -> None:
    for name in ("a.mp4", "out.mp4"):
        with pytest.raises(QuestionError, match=r"film=.*itself, which would be overwritten"):
            respond(words, f"film={tmp_path / name}")
    with pytest.raises(QuestionError, match="film= shows both people"):
        respond(words, "initiator=", f"film={tmp_path / 'film.mp4'}")
    respond(
        words, f"initiator=[{tmp_path / 'a.mp4'},{tmp_path / 'a.mp4'}]", f"film={tmp_path / 'film.mp4'}", "seconds=0.1"
    )
    assert (tmp_path / "film.mp4").is_file()
    assert (tmp_path / "out.mp4").is_file()


def test_new_folders_are_accepted(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "X.MP4", [tmp_path / "a.mp4"])


@pytest.mark.parametrize("name", ["a", "b"])
def test_no_pair_is_answered_into_a_file_of_the_benchmark(words: list[str], tmp_path: Path, name: str) -> None:
    """Neither into the pair's own file (a.mp4) nor into a hard link to it (b.mp4)."""
    line = (
        f'{{"id": "{name}", "reference": "b.png", "initiator": {{"clip": "a.mp4", "speaker": "a"}}, '
        '"truth": {"clip": "a.mp4", "speaker": "b", "text": "hi", "start": 0.0, "end": 0.3}}'
    )
    (tmp_path / "pairs.jsonl").write_text(line)
    (tmp_path / "b.mp4").hardlink_to(tmp_path / "a.mp4")
    before = (tmp_path / "a.mp4").read_bytes()
    config = composed(words, f"pairs={tmp_path}", f"output={tmp_path}")
    with pytest.raises(ValueError, match=rf"{name}\.mp4 belongs to the benchmark and would be overwritten"):
        infer_script.answer_pairs(config)
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_impossible_settings_are_refused_before_the_first_pair(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        '{"id": "c", "reference": "b.png", "initiator": {"clip": "a.mp4", "speaker": "a"}, '
        '"truth": {"clip": "a.mp4", "speaker": "b", "text": "hi", "start": 0.0, "end": 0.3}}'
    )
    with pytest.raises(ValueError, match=r"^settings\.window must be"):
        infer_script.answer_pairs(composed(words, f"pairs={tmp_path}", f"output={tmp_path}", "settings.window=0"))


def test_devices_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [usable(name) for name in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(DeviceError, match="2 CUDA GPUs, cuda:0 to cuda:1"):
        usable("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable("auto") == "cpu"
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        usable("cuda")


def test_a_stopped_answer_leaves_no_partial_file(words: list[str], tmp_path: Path) -> None:
    """A process that is stopped by a signal exits with its code and removes the file that it was writing."""
    command = [sys.executable, "infer.py", *words, "seconds=3000", "settings.ends=false"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 180
        while not list(tmp_path.glob(".*.partial")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.glob(".*.partial"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.png"]
