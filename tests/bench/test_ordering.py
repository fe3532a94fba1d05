"""Truth >= any answer >= no answer, in every metric, on rendered, filmed-like and (where they are) filmed clips."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from torch.nn import functional as F

from vidchat.bench.clips import View
from vidchat.bench.pairs import CANDIDATES, PAIRS, read_pairs
from vidchat.bench.scoring import score
from vidchat.bench.suite import Backends
from vidchat.bench.systems import SHUFFLED, TRUTH, Folder
from vidchat.data.media.read import Media, read_clip, write_clip
from vidchat.dialogue import Clip
from vidchat.playground.people.cast import make_speaker
from vidchat.playground.people.face import draw_face
from vidchat.playground.people.performance import perform
from vidchat.playground.people.script import Case

SIDE = 64
LENGTHS = (36, 46, 60)  # frames; so different that each falls out of the other's length bounds
INSENSITIVE = {"proxy-face found", "coverage"}  # without a detector every frame that is not blank has a face
DELETED = ("round trip", "frozen, silent", "noise", "blocks", "white")  # of these also without the first clip
EMPTY, LESS, PERMUTED = "nothing", " less one", "truths in other places"


def rendered(number: int, frames: int) -> Media:
    """Returns a clip of a rendered speaker."""
    speaker, case = make_speaker(5, number), Case("tea", ("happy", "sad", "happy")[number])
    turn = perform(speaker, "responder", case.answer, case.expression, np.random.default_rng(number), 25, 16000)
    poses = (turn.poses * 3)[:frames]
    drawn = np.stack([draw_face(speaker.identity, pose, (SIDE, SIDE)) for pose in poses])
    audio = torch.from_numpy(np.tile(turn.waveform, 3)[: 640 * frames])
    return Media(torch.from_numpy(drawn).permute(0, 3, 1, 2), audio, 25, 16000)


def filmed(number: int, count: int) -> Media:
    """Returns a textured face that sways and turns under a changing light, by a noisy camera in a noisy room."""
    rng = np.random.default_rng(number)
    time = np.arange(count) / 25
    texture = F.interpolate(torch.from_numpy(rng.uniform(40, 215, (1, 3, 12, 12))), (SIDE, SIDE), mode="bicubic")
    talk = np.clip(np.sin(2 * np.pi * (3.1 + 0.3 * number) * time + number), 0, 1) * (np.sin(time + number) > -0.5)
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    sway = torch.from_numpy(0.05 * rng.standard_normal((count, 2)).cumsum(0) / 5)
    turning = torch.linspace(0, 0.25 * (1 + number), count, dtype=torch.float64)
    frames = []
    for i in range(count):
        grid = torch.stack([x * (1 + turning[i]) + sway[i, 0], y + sway[i, 1]], dim=-1)[None].double()
        face = F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)[0]
        mouth = (x / 0.25) ** 2 + ((y - 0.45) / (0.03 + 0.15 * talk[i])) ** 2 < 1
        face[:, mouth] = 20
        frames.append(face * (1 + 0.1 * np.sin(time[i])) + torch.from_numpy(4 * rng.standard_normal(face.shape)))
    tone = 110 * (1 + 0.5 * number) * (1 + 0.05 * np.sin(5 * np.arange(640 * count) / 16000))
    voice = sum(np.sin(k * 2 * np.pi * np.cumsum(tone) / 16000) / k for k in range(1, 12))
    audio = 0.1 * voice * np.repeat(talk, 640) + 0.003 * rng.standard_normal(640 * count)
    return Media(torch.stack(frames).clamp(0, 255).byte(), torch.from_numpy(audio).float(), 25, 16000)


def write(path: Path, media: Media) -> None:
    path.parent.mkdir(exist_ok=True)
    write_clip(path, media.frames, media.waveform, media.fps, media.sample_rate)


def write_bench(folder: Path, truths: list[Media]) -> None:
    from PIL import Image

    lines, candidates = [], []
    for number, truth in enumerate(truths):
        write(folder / f"truth{number}.mp4", truth)
        wavfile.write(folder / f"said{number}.wav", 16000, truth.waveform.numpy())
        Image.fromarray(truth.frames[0].permute(1, 2, 0).numpy()).save(folder / f"face{number}.png")
        clip = {"clip": f"truth{number}.mp4", "speaker": f"person {number}"}
        lines.append({"id": f"p{number}", "reference": f"face{number}.png", "initiator": clip, "truth": clip})
        other = (number + 1) % len(truths)
        replies = ((1.0, number), (0.2, other))
        options = [{"text": f"t{n}", "worth": worth, "sounds": [f"said{n}.wav"]} for worth, n in replies]
        candidates.append({"id": f"p{number}", "candidates": options})
    for name, entries in ((PAIRS, lines), (CANDIDATES, candidates)):
        (folder / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def answers(truth: Media, other: Media, seed: int) -> dict[str, Media]:
    """Returns possible answers, from good to absurd."""
    rng = torch.Generator().manual_seed(seed)
    count, silence = len(truth.frames), torch.zeros_like(truth.waveform)
    noise = torch.randint(0, 256, truth.frames.shape, dtype=torch.uint8, generator=rng)
    hiss = 0.3 * torch.randn(truth.waveform.shape, generator=rng)
    coarse = (torch.rand((count, 3, 8, 8), generator=rng) > 0.5).byte() * 255
    still = truth.frames[:1].expand(count, -1, -1, -1)
    near = (truth.frames.float() + 3 * torch.randn(truth.frames.shape, generator=rng)).clamp(0, 255).byte()
    loud = (truth.waveform * 3).clamp(-1, 1)
    return {
        "round trip": Media(near, truth.waveform + 0.001 * hiss, 25, 16000),
        "another answer": other,
        "frozen, silent": Media(still, silence, 25, 16000),
        "frozen, loud": Media(still, loud, 25, 16000),
        "noise": Media(noise, hiss, 25, 16000),
        "blocks": Media(F.interpolate(coarse, scale_factor=SIDE / 8), hiss, 25, 16000),
        "white": Media(torch.full_like(noise, 255), hiss, 25, 16000),
        "black, silent": Media(torch.zeros_like(noise), silence, 25, 16000),
        "short": Media(truth.frames[: count // 3], truth.waveform[: 640 * (count // 3)], 25, 16000),
        "turned around": Media(truth.frames.flip(0, 2), -truth.waveform.flip(0), 25, 16000),
    }


def real(folder: Path, number: int, frames: int) -> Media:
    """Reads a clip of a filmed speaker."""
    path = sorted(folder.glob("grid_*.mp4"))[number]
    clip = Clip(path, "", start=0.5, end=0.5 + frames / 25)
    return read_clip(clip, fps=25, size=(SIDE, SIDE), sample_rate=16000)


@pytest.fixture(scope="module", params=["rendered", "filmed-like", "real"])
def result(request, tmp_path_factory):
    """Scores every kind of answer, some kinds also with one clip deleted, and an empty folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    people = {"rendered": rendered, "filmed-like": filmed}
    if request.param == "real":
        people["real"] = partial(real, request.getfixturevalue("real_clips"))
    truths = [people[request.param](number, frames) for number, frames in enumerate(LENGTHS)]
    write_bench(folder, truths)
    for number, truth in enumerate(truths):
        for name, media in answers(truth, truths[(number + 1) % len(truths)], number).items():
            write(folder / name / f"p{number}.mp4", media)
    for name in DELETED:
        (folder / f"{name}{LESS}").mkdir()
        for path in sorted((folder / name).iterdir())[1:]:
            (folder / f"{name}{LESS}" / path.name).hardlink_to(path)
    for number in range(len(truths)):  # the truths themselves, each in another's place
        target = folder / PERMUTED / f"p{number}.mp4"
        target.parent.mkdir(exist_ok=True)
        target.hardlink_to(folder / f"truth{(number + 1) % len(truths)}.mp4")
    (folder / EMPTY).mkdir()
    systems = [Folder(path.name, path) for path in sorted(folder.iterdir()) if path.is_dir()]
    view, store = View((SIDE, SIDE)), tmp_path_factory.mktemp("features")
    return score(read_pairs(folder), systems, Backends(), view, store, resamples=0)


def table(result) -> dict[str, dict[str, float]]:
    """Returns values by column and system, with the sign that makes higher better."""
    goods: dict[str, dict[str, float]] = {}
    for system in result.systems:
        for number in system.numbers:
            assert number.column.better in ("higher", "lower"), number.column.name
            if number.count:
                assert np.isfinite(number.value), (system.name, number.column.name)
                sign = 1 if number.column.better == "higher" else -1
                goods.setdefault(number.column.name, {})[system.name] = sign * number.value
    return goods


def test_the_truth_is_the_ceiling_and_an_empty_folder_the_floor(result):
    goods = table(result)
    assert len(goods) >= 15
    for column, good in goods.items():
        for name, value in good.items():
            assert good[TRUTH] >= value - 1e-9, f"{name} passes the truth in {column}"
            assert value >= good[EMPTY] - 1e-9, f"{name} falls below nothing at all in {column}"
        assert good[TRUTH] > good[EMPTY], column
        assert good[TRUTH] > good["noise"] or column in INSENSITIVE, column


def test_no_answer_gains_by_being_deleted(result):
    for column, good in table(result).items():
        for name, value in good.items():
            if name + LESS in good:
                assert value >= good[name + LESS] - 1e-9, f"{name} gains in {column} by one clip less"


def test_the_same_set_of_clips_is_at_distance_0_whoever_they_answer(result):
    seen = 0
    for system in result.systems:
        for number in system.numbers:
            if number.column.kind == "frechet" and system.name in (TRUTH, SHUFFLED, PERMUTED):
                assert number.value == pytest.approx(0, abs=1e-6), (system.name, number.column.name)
                seen += 1
    assert seen == 9


def test_a_near_copy_is_better_than_noise_in_every_metric(result):
    for column, good in table(result).items():
        assert good["round trip"] > good["noise"] or column in INSENSITIVE, column
