"""Listening turns: how they are recognised, which metrics apply, and that a better listener scores better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vidchat.bench.clips import View
from vidchat.bench.faces import CentredFace
from vidchat.bench.listening_metric import Listening, is_listening
from vidchat.bench.make import write_bench
from vidchat.bench.metric import bounded_values
from vidchat.bench.pairs import PAIRS, read_pairs
from vidchat.bench.scoring import score
from vidchat.bench.suite import Backends
from vidchat.bench.systems import FROZEN, TRUTH, Folder
from vidchat.bench.table import make_table, markdown
from vidchat.data.media.read import Media, write_clip
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue, Turn

SIDE, FRAMES = 64, 50
SPEECH = ("proxy-Sync-C", "proxy-SIM-o", "loudness drift dB")


def person(nods: float = 1.0, talks: float = 0.0, room: float = 0.003, seed: int = 0) -> Media:
    """Returns a clip of a textured face that nods, and may talk, in a room with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(FRAMES) / 25
    texture = F.interpolate(torch.from_numpy(rng.uniform(60, 200, (1, 3, 14, 14))), (SIDE, SIDE), mode="bicubic")
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIDE), torch.linspace(-1, 1, SIDE), indexing="ij")
    opening = talks * np.clip(np.sin(2 * np.pi * 3.3 * time), 0, 1)
    frames = []
    for i in range(FRAMES):
        nod = 0.05 * nods * np.sin(2 * np.pi * 1.5 * time[i])
        grid = torch.stack([x, y + nod], dim=-1)[None].double()
        face = F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)[0]
        face[:, (x / 0.3) ** 2 + ((y + nod - 0.4) / (0.02 + 0.2 * opening[i])) ** 2 < 1] = 20
        frames.append(face + torch.from_numpy(rng.standard_normal(face.shape)))
    voice = 0.2 * np.repeat(opening, 640) * np.sin(2 * np.pi * 140 * np.arange(640 * FRAMES) / 16000)
    audio = voice + room * rng.standard_normal(640 * FRAMES)
    return Media(torch.stack(frames).clamp(0, 255).byte(), torch.from_numpy(audio).float(), 25, 16000)


def still(media: Media) -> Media:
    frame = media.frames[:1].expand(FRAMES, -1, -1, -1)
    return Media(frame, torch.zeros_like(media.waveform), 25, 16000)


def test_a_quiet_truth_without_words_listens_and_the_branch_says_so_too(pairs):
    quiet, loud = person(), person(talks=1)
    silent = replace(quiet, waveform=torch.zeros(640 * FRAMES))
    unsaid = replace(pairs[0], truth=replace(pairs[0].truth, text=None))
    assert is_listening(unsaid, quiet)
    assert is_listening(unsaid, silent)
    assert not is_listening(unsaid, loud)
    assert not is_listening(pairs[0], quiet), "words were said, however quietly"
    assert is_listening(replace(pairs[0], branch="listening"), loud), "a laugh is not a turn"


def test_a_better_listener_scores_better():
    metric = Listening(CentredFace())
    truth = metric.read(person())
    answers = {
        "twin": person(seed=0, room=0.002),
        "talker": person(talks=1),
        "frozen": still(person()),
        "wild": person(nods=8),
        "silent twin": replace(person(), waveform=torch.zeros(640 * FRAMES)),
    }
    ceiling = metric.compare(truth, truth, {}, None)
    assert set(ceiling.values()) == {0.0}
    scores = {
        name: bounded_values(metric, metric.compare(metric.read(media), truth, {}, None), ceiling)
        for name, media in answers.items()
    }
    assert max(scores["twin"].values()) < 0.2
    assert scores["silent twin"]["audio over truth dB"] == 0, "a listener may be silent"
    assert scores["talker"]["audio over truth dB"] > 10
    assert scores["talker"]["mouth motion"] > 1
    assert scores["frozen"]["head motion"] > 1
    assert scores["wild"]["head motion"] > 1
    nothing = bounded_values(metric, {}, ceiling)
    assert all(nothing[name] > max(one[name] for one in scores.values()) for name in nothing)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A benchmark of one listening turn in a quiet room and one speaking turn, and two systems."""
    folder = tmp_path_factory.mktemp("listening")
    dialogues = []
    for branch, media in (("listening", person()), ("dialogue", person(talks=1, seed=1))):
        write_clip(folder / f"{branch}.mp4", media.frames, media.waveform, 25, 16000)
        ask, answer = (Clip(folder / f"{branch}.mp4", f"{who} of {branch}") for who in ("asker", "responder"))
        dialogues.append(Dialogue(branch, (Turn("initiator", ask), Turn("responder", answer)), branch=branch))
        for name, made in (("still", still(media)), ("twin", media)):
            (folder / name).mkdir(exist_ok=True)
            write_clip(folder / name / f"{branch}.mp4", made.frames[1:], made.waveform[640:], 25, 16000)
    write_bench(dialogues, folder / "bench", Report("pairs"))
    return folder


def run(folder: Path, pairs, tmp_path: Path):
    systems = [Folder(name, folder / name) for name in ("still", "twin")]
    return score(pairs, systems, Backends(), View((SIDE, SIDE)), tmp_path, resamples=0)


def test_silence_is_no_fault_of_a_listener_and_speech_metrics_do_not_apply(folder, tmp_path):
    pairs = read_pairs(folder / "bench")
    assert [pair.branch for pair in pairs] == ["listening", "dialogue"]
    result = run(folder, pairs, tmp_path)
    for name in ("still", FROZEN):
        scores = next(system for system in result.systems if system.name == name).scores
        assert scores["listening"].statuses == ("good",), name
        assert scores["dialogue"].statuses == ("silent",), name
        for column in SPEECH:
            assert column not in scores["listening"].values, column
            assert column in scores["dialogue"].values, column
        assert "mouth motion" in scores["listening"].values
        assert "mouth motion" not in scores["dialogue"].values
    numbers = {number.column.name: number for number in result.systems[0].numbers}
    assert result.systems[0].name == TRUTH
    assert [numbers[name].count for name in (*SPEECH, "mouth motion", "PSNR")] == [1, 1, 1, 1, 2]


def test_a_column_that_no_pair_can_have_is_a_dash_with_its_reason(folder, tmp_path):
    pairs = read_pairs(folder / "bench")
    for chosen, column, reason in (
        (pairs[:1], "proxy-SIM-o", "only listens, so metrics of speech do not apply"),
        (pairs[1:], "head motion", "no true answer listens"),
        (pairs[:1], "proxy-FVD", "needs more clips than this benchmark has pairs"),
    ):
        result = run(folder, chosen, tmp_path)
        assert reason in make_table([result]).missing()[column]
        assert f"- **{column}**: " in markdown([result])


def test_the_branch_stands_in_the_pairs_file(folder):
    lines = [json.loads(line) for line in (folder / "bench" / PAIRS).read_text().splitlines()]
    assert [line["branch"] for line in lines if "id" in line] == ["listening", "dialogue"]


def test_a_truth_that_is_too_short_for_a_metric_does_not_count_as_listening(folder, tmp_path):
    pair = read_pairs(folder / "bench")[1]
    short = replace(pair, truth=replace(pair.truth, start=0.1, end=0.42, text="so"), answer_seconds=0.32)
    missing = make_table([run(folder, [short], tmp_path)]).missing()
    assert "too short" in missing["proxy-Sync r"]
