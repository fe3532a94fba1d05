"""Hostile words on the command line: texts and paths are literal, numbers are checked, mistakes are sentences."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults import commands
from tests.faults.law import Case, judge, some

TEXTS = (
    "", " ", "Hello, how are you?", "it's fine", '"so", he said', "你好，世界", "a=b, c: {d} [e]", "3", "true",
    "null", "nan",
    "${oc.env:A_SECRET}", "${x", "\\", "'", "$(touch canary)", "`touch canary`", "-1", "--help",
    "a" * 4999, "🙂" * 100, "\u202e",
    "<script>", "\udcff", "1e400",
)  # fmt: skip
PATHS = (
    "no.mp4", "", " ", ".", "..", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "a" * 300, "a/" * 3000,
    "a\tb", "${oc.env:HOME}",
    "a=b, (1).mp4", "'", "http://127.0.0.1:9/x.mp4", "file:///etc/passwd", "concat:a|b", "-i", "~", "*", "\udcff",
)  # fmt: skip
NUMBERS = (
    "nan", "inf", "-inf", "-1", "0", "1e400", "1e30", "1e-30", "x", "null", "true", "[]", "{}", "", "''",
    "9" * 400, "0x10",
)  # fmt: skip


PATH_KEYS = ("checkpoint", "initiator", "reference", "output", "voice", "pairs", "thinker_from")
NUMBER_KEYS = (
    "seconds", "settings.window", "settings.seed", "settings.sampling.sets", "settings.sampling.flow_steps",
    "settings.sampling.temperature", "settings.sampling.guidance", "settings.sampling.noise_level",
    "settings.sampling.codes.temperature", "settings.sampling.codes.top_k", "settings.sampling.codes.top_p",
)  # fmt: skip


def texts_and_paths(folder: Path, release: Path, initiator: Path) -> list[Case]:
    """infer.py with every hostile text, path and number; the question stays whole, as does everything beside it."""
    os.environ["A_SECRET"] = "a-secret"
    given = {
        "checkpoint": release,
        "initiator": initiator,
        "reference": initiator,
        "output": folder / "out.mp4",
        "seconds": 0.3,
    }
    kept = initiator.read_bytes()

    def case(**changed: object) -> Case:
        words = [f"{key}={value}" for key, value in (given | changed).items()]
        name = " ".join(f"{key}={str(value)[:40]!r}" for key, value in changed.items())
        return Case(
            f"infer {name}",
            partial(commands.script, "infer", *words),
            after=partial(_untouched, folder, initiator, kept),
        )

    cases = [case(text=text) for text in TEXTS]
    # Never a real device to write to: whatever renamed a file to its name would take it from the whole machine.
    cases += [case(**{key: path}) for key in PATH_KEYS for path in PATHS if key != "output" or "/dev/" not in path]
    os.mkfifo(folder / "pipe")
    cases += [case(output=path) for path in (initiator, release, release / "config.yaml", folder, folder / "pipe")]
    cases += [case(**{key: number}) for key in NUMBER_KEYS for number in NUMBERS]
    cases += [case(device=device) for device in ("cuda", "cuda:99", "cuda:-1", "tpu", "", "cpu:7", "mps", "3", "meta")]
    cases += [case(scores=scores) for scores in ("{dover: nan}", "{dover: x}", "{no: 1}", "[1]", "3", "{}", "null")]
    for word in ("settings.sampling._target_=os.system", "+x=1", "x=1", "=1", "--bogus", "precision=fp8", "text"):
        words = [*(f"{key}={value}" for key, value in given.items()), word]
        cases.append(Case(f"infer {word}", partial(commands.script, "infer", *words)))
    return cases


def _untouched(folder: Path, initiator: Path, kept: bytes) -> None:
    assert initiator.read_bytes() == kept, "the initiator was overwritten"
    left = [path.name for path in folder.rglob("*") if "partial" in path.name or "canary" in path.name]
    assert not left, f"it left {left}"


def test_every_word_of_infer_is_literal_or_refused(
    data: Path, trained: Path, tmp_path: Path, amount: Callable[[int], int]
) -> None:
    initiator = tmp_path / "initiator.mp4"
    initiator.write_bytes((data / "initiator0.mp4").read_bytes())
    judge(some, tmp_path, texts_and_paths, amount(40), trained / "release", initiator)


def numbers_of_training(folder: Path) -> list[Case]:
    """train.py with every hostile number: refused before the first step, or trained with."""
    keys = (
        "stage.steps", "data.batch_size", "data.fps", "data.max_chunks", "checkpoints.every",
        "checkpoints.keep", "log_every",
        "seed", "stage.optimizer.lr", "stage.optimizer.warmup", "trainer.accumulate_grad_batches", "trainer.devices",
        "trainer.val_check_interval", "data.num_workers", "condition.drop", "model.ratio",
        "model.flow.width", "data.size",
    )  # fmt: skip
    more = ("resume=null", "stage.steps=1", "trainer.limit_val_batches=0")
    words = [f"{key}={number}" for key in keys for number in ("nan", "-1", "0", "1e400", "x", "null", "1.5")]
    words += [
        "trainer.accelerator=gpu", "trainer.accelerator=x", "trainer.precision=x",
        "stage.optimizer.schedule=x", "stage.optimizer.betas=[2,3]", "stage.optimizer.betas=3", "data.dtype=x",
        "condition.text=x", "condition.scores=3", "model._target_=os.system", "stage.branch=x", "stage.tier=x",
        "data.sources=[{weight:-1}]", "data.sources=[{weight:nan}]", "data.sources=3", "data.sources=[]",
    ]  # fmt: skip
    return [
        Case(f"train {word}", partial(commands.train, folder / "data", folder / "run", *more, word)) for word in words
    ]


def test_every_number_of_training_is_used_or_refused(data: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    shutil.copytree(data, tmp_path / "data")
    judge(some, tmp_path, numbers_of_training, amount(25))


def words_of_data(folder: Path, data: Path) -> list[Case]:
    """The commands of `vidchat data`."""
    out = folder / "out"
    lines: list[list[object]] = [[command, path] for command in ("stats", "show") for path in PATHS]
    lines += [["encode", data, "--output", out, word] for word in (
        "data.size=0x0", "data.size=x", "data.size=-1x4", "data.size=[1]", "data.fps=0", "data.fps=-1",
        "data.max_chunks=0", "workers=0", "shard_mb=0", "shard_clips=0", "device=cuda:99", "device=tpu",
        "data.dtype=float7", "video_vae=no", "video_vae=/dev/null", "video_vae=null", "engine=x", "seed=1", "==",
        "worker=2",
    )]  # fmt: skip
    lines += [["ingest", path, "--output", folder / "x.parquet", f"source={source}"]
              for path in (*PATHS[:4], "/dev/null", data) for source in ("folder", "speakervid",
              "seamless_interaction")]  # fmt: skip
    os.mkfifo(folder / "pipe")
    lines += [["pack", data, "--output", place] for place in (folder / "pipe", "/proc/x", data / "dialogues.jsonl")]
    lines += [["verify", path] for path in PATHS]
    said = [[str(word) for word in line] for line in lines if "\udcff" not in line]  # which the runner cannot print
    return [
        Case("data " + " ".join(word[:60] for word in words), partial(commands.vidchat, "data", *words))
        for words in said
    ]


def test_hostile_words_of_data(data: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    shutil.copytree(data, tmp_path / "data")
    judge(some, tmp_path, words_of_data, amount(40), tmp_path / "data")
