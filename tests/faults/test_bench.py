"""Hostile pairs, answers, logs and scores: VidChatBench scores what it can, and refuses the rest in a sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.faults import commands
from tests.faults.law import Case, judge, some
from tests.faults.mutations import damaged, damaged_json
from tests.faults.specimens import film
from tests.faults.test_checkpoints import Evil
from vidchat.bench.pairs import PairsError, read_pairs
from vidchat.bench.responsiveness import read_log
from vidchat.bench.results import ResultError, read_result
from vidchat.bench.table import latex, markdown


def pair(name: str) -> dict[str, Any]:
    clips = {
        side: {"clip": f"{side}.mp4", "speaker": f"{side} {name}", "text": "a word"} for side in ("initiator", "truth")
    }
    return {"id": name, "reference": "face.png", **clips}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, a system that answers both, and its scores, in one folder."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "answers").mkdir()
    for side in ("initiator", "truth"):
        film(folder / f"{side}.mp4", frames=20)
    Image.new("RGB", (32, 32), (90, 60, 50)).save(folder / "face.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair(name)) + "\n" for name in ("first", "second")))
    for name in ("first", "second"):
        shutil.copy(folder / "truth.mp4", folder / "answers" / f"{name}.mp4")
    log = {"chunks": [{"ready_s": 0.1, "media_s": 0.16}, {"ready_s": 0.2, "media_s": 0.16}], "first_chunk_s": 0.1}
    (folder / "answers" / "first.json").write_text(json.dumps(log))
    score(folder, folder / "scores")
    return folder


def score(folder: Path, output: Path) -> None:
    words = (folder, f"systems.ours={folder / 'answers'}", "-o", output, "resamples=3", "video_frames=2")
    commands.vidchat("bench", "score", *words)


def hostile_pairs(folder: Path, bench: Path, count: int) -> Iterator[Case]:
    """A line of `pairs.jsonl` or `candidates.jsonl` with a strange value, or damaged."""
    shutil.copytree(bench, folder / "bench", dirs_exist_ok=True)
    good = pair("first")
    replies = {
        "id": "first",
        "candidates": [{"text": "yes", "worth": 1.0, "sounds": ["truth.mp4"]}, {"text": "no", "worth": 0.2}],
    }
    for seed in range(count):
        name, value = (("pairs", good), ("candidates", replies))[seed % 2]
        path = folder / "bench" / f"{name}.jsonl"
        kept = path.read_bytes() if path.is_file() else b""
        if seed % 4 < 2:
            how, data = damaged(json.dumps(value).encode(), seed)
        else:
            how, text = damaged_json(value, seed)
            data = text.encode("utf-8", "surrogatepass")
        path.write_bytes(data + b"\n")
        yield Case(f"{name} {seed} ({how})", partial(_use, folder / "bench"), str(path.parent), (PairsError,))
        path.write_bytes(kept) if kept else path.unlink()


def _use(folder: Path) -> None:
    for one in read_pairs(folder):
        f"{one.id} {one.truth.text} {one.initiator.speaker}".encode()


def test_a_hostile_pair_is_named(bench: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_pairs, tmp_path, bench, amount(400))


def _spoilt(good: bytes, seed: int) -> tuple[str, bytes]:
    """JSON with damaged bytes or a strange value, by turns, and how."""
    if seed % 2:
        return damaged(good, seed)
    how, text = damaged_json(json.loads(good), seed)
    return how, text.encode("utf-8", "surrogatepass")


def hostile_results(folder: Path, bench: Path, count: int) -> Iterator[Case]:
    """`scores.json` with a strange value, or damaged, made into tables."""
    good, path = (bench / "scores" / "scores.json").read_bytes(), folder / "scores.json"
    for seed in range(count):
        how, data = _spoilt(good, seed)
        path.write_bytes(data)
        yield Case(f"scores {seed} ({how})", partial(_tables, path), path.name, (ResultError,))
        if seed % 20 == 0:
            act = partial(commands.vidchat, "bench", "report", path, "-o", folder / "report")
            yield Case(f"scores {seed} ({how}) in report", act, path.name)


def _tables(path: Path) -> None:
    result = read_result(path)
    markdown([result]).encode()
    latex([result]).encode()


def test_hostile_scores_are_refused(bench: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_results, tmp_path, bench, amount(300))


def hostile_logs(folder: Path, bench: Path, count: int) -> Iterator[Case]:
    """A generator's log, damaged: a note, never an error."""
    good, path = (bench / "answers" / "first.json").read_bytes(), folder / "first.json"
    for seed in range(count):
        how, data = _spoilt(good, seed)
        path.write_bytes(data)
        yield Case(f"log {seed} ({how})", partial(read_log, path), must="work")
    path.unlink()
    path.mkdir()
    yield Case("log: a folder", partial(read_log, path), must="work")


def test_a_hostile_log_is_a_note(bench: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_logs, tmp_path, bench, amount(400))


def hostile_answers(folder: Path, bench: Path, count: int) -> Iterator[Case]:
    """An answers' folder in which one clip is damaged or no file at all: the other is scored, and so is this one."""
    shutil.copytree(bench, folder / "bench", dirs_exist_ok=True)
    clip = folder / "bench" / "answers" / "second.mp4"
    good = clip.read_bytes()
    strange: dict[str, Callable[[], object]] = {
        "missing": lambda: None, "empty": clip.touch, "a folder": clip.mkdir, "a pipe": partial(os.mkfifo, clip),
        "a loop": partial(clip.symlink_to, clip), "a link to nothing": partial(clip.symlink_to, "/nowhere"),
        "no end": partial(clip.symlink_to, "/dev/zero"), "text": lambda: clip.write_text("hello"),
        "an hour": lambda: film(clip, jump=3600),
    }  # fmt: skip
    for seed in range(count):
        how, data = damaged(good, seed)
        strange[f"damaged {seed} ({how})"] = partial(clip.write_bytes, data)
    for name, make in strange.items():
        clip.rmdir() if clip.is_dir() and not clip.is_symlink() else clip.unlink(missing_ok=True)
        make()
        yield Case(f"an answer is {name}", partial(score, folder / "bench", folder / "scores"), must="work")
    clip.rmdir() if clip.is_dir() else clip.unlink()
    clip.write_bytes(good)


def test_a_hostile_answer_costs_no_score(bench: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(hostile_answers, tmp_path, bench, amount(3))


def hostile_words(folder: Path, bench: Path) -> list[Case]:
    """The commands' words."""
    pairs, system = (bench,), (f"systems.ours={bench / 'answers'}",)
    out = ("-o", folder / "out")
    (folder / "taken").touch()
    (folder / "empty").mkdir(exist_ok=True)
    words: list[tuple[Any, ...]] = [
        ("report", "no.json", *out),
        ("report", bench, *out),
        ("report", bench / "pairs.jsonl", *out),
    ]
    words += [
        ("score", *pairs, f"systems.{text}", *out) for text in ("", "=", "a=", "=b", "truth=.", "a=/dev/null", "a=${x}")
    ]
    words += [("score", *pairs, *system, *system, *out), ("score", folder / "empty", *system, *out)]
    for size in ("0x0", "1x1", "99999999x99999999", "-1x5", "x", "32x", "nan", "1e3x1e3"):
        words.append(("score", *pairs, *system, *out, f"size={size}"))
    for key in ("workers", "resamples", "video_frames", "embed"):
        words += [("score", *pairs, *system, *out, f"{key}={value}") for value in ("0", "-1", "x", "nan")]
    words += [("score", *pairs, *system, *out, f"device={name}") for name in ("cuda:99", "tpu", "")]
    for option in (
        "face",
        "inception",
        "i3d",
        "videomae",
        "arcface",
        "syncnet",
        "dnsmos",
        "utmos",
        "whisper",
        "xvector",
    ):
        more = (f"scrfd={bench / 'face.png'}",) if option == "arcface" else ()
        for path in ("no.onnx", bench / "face.png", bench / "answers", _evil(folder)):
            words.append(("score", *pairs, *system, *out, f"{option}={path}", *more))
    words += [
        ("score", *pairs, *system, "-o", folder / "taken"),
        ("make", bench, *out),
        ("make", "", *out),
    ]
    for testset in ("/dev/null", bench / "face.png", bench / "pairs.jsonl", bench):
        words.append(("make", testset, f"clips={bench}", *out))
    words += [
        ("ablation", *pairs, f"rows.{row}", *out) for row in ("", "dyadic", "dyadic:=.", "x:none=.", "dyadic:loud=.")
    ]
    names = [" ".join(map(str, line)).replace(str(folder), ".").replace(str(bench), "BENCH") for line in words]
    return [
        Case(f"bench {name}", partial(commands.vidchat, "bench", *line), after=lambda: no_canary(folder))
        for name, line in zip(names, words, strict=True)
    ]


def no_canary(folder: Path) -> None:
    assert not (folder / "canary").exists(), "it was executed"


def _evil(folder: Path) -> Path:
    """A pickle that makes a file when it is loaded."""
    path = folder / "evil.pt"
    path.write_bytes(pickle.dumps(Evil(os.system, f"touch {folder / 'canary'}")))
    return path


def test_hostile_words_of_the_bench(bench: Path, tmp_path: Path, amount: Callable[[int], int]) -> None:
    judge(some, tmp_path, hostile_words, amount(30), bench)
