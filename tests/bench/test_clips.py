"""Bad clips, one of each kind, by the stated rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.bench.conftest import film
from vidchat.bench.clips import View, find, read_made, read_reference, read_truth
from vidchat.bench.comparison import worth
from vidchat.bench.metric import bounded_values
from vidchat.bench.suite import Backends
from vidchat.data.media.read import write_clip
from vidchat.dialogue import Clip

VIEW = View((48, 48))
CHANCE = ("offset",)  # of one clip it is hardly more, so a part's may be nearer to 0


@pytest.fixture
def truth(pairs):
    return read_truth(pairs[0], VIEW)


def made(tmp_path, truth, frames, audio):
    path = tmp_path / "x.mp4"
    write_clip(path, frames, audio, 25, 16000)
    return read_made(Clip(path, ""), truth, VIEW)


def beginning(frames):
    """An answer that ends after so many frames."""
    whole, audio = film(9)
    return whole[:frames], audio[: 640 * frames]


def test_a_good_clip_is_scored_as_it_is(tmp_path, truth):
    found = made(tmp_path, truth, *film(9))
    assert found.statuses == ("good",)
    assert found.note == ""
    assert found.media.frames.shape == truth.frames.shape


def test_a_missing_clip_is_black_and_silent_and_as_long_as_the_truth(truth, tmp_path):
    assert find(tmp_path, "p0") is None
    found = read_made(None, truth, VIEW)
    assert found.statuses == ("missing",)
    assert found.media.frames.shape == truth.frames.shape
    assert found.media.waveform.shape == truth.waveform.shape
    assert not found.media.frames.any()
    assert not found.media.waveform.any()


@pytest.mark.parametrize("content", [b"", b"not a film" * 50, None])
def test_an_unreadable_clip_is_scored_like_a_missing_one(tmp_path, truth, content):
    path = tmp_path / "x.mp4"
    write_clip(path, *film(9), 25, 16000)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    found = read_made(Clip(path, ""), truth, VIEW)
    assert found.statuses == ("unreadable",)
    assert "x.mp4" in found.note
    assert not found.media.frames.any()


@pytest.mark.parametrize("audio", [None, torch.zeros(40 * 640)])
def test_a_silent_clip_keeps_its_pictures(tmp_path, truth, audio):
    found = made(tmp_path, truth, film(9)[0], audio)
    assert found.statuses == ("silent",)
    assert found.media.frames.any()
    assert found.media.waveform.abs().max() < 1e-3


def test_a_short_clip_is_filled_up_with_black_in_a_set_alone(tmp_path, truth):
    found = made(tmp_path, truth, *film(9, frames=20))
    assert found.statuses == ("short",)
    assert len(found.media.frames) == 20
    assert len(found.media.waveform) == 20 * 640
    assert len(found.whole.frames) == len(truth.frames)
    assert found.whole.frames[:20].any()
    assert not found.whole.frames[20:].any()
    assert len(found.whole.waveform) == len(truth.waveform)
    assert found.seconds == pytest.approx(0.8)
    assert found.coverage == pytest.approx(0.5)


@pytest.mark.parametrize("frames", [41, 43, 90])
def test_what_is_longer_than_the_truth_is_cut_and_no_fault(tmp_path, truth, frames):
    found = made(tmp_path, truth, *film(9, frames=frames))
    assert found.statuses == ("good",)
    assert len(found.media.frames) == len(truth.frames)
    assert len(found.media.waveform) == len(truth.waveform)
    assert found.coverage == 1.0


@pytest.mark.parametrize(("frames", "status"), [(39, "good"), (35, "good"), (34, "short"), (1, "short")])
def test_what_is_nearly_there_is_held_and_no_more(tmp_path, truth, frames, status):
    found = made(tmp_path, truth, *beginning(frames))
    assert found.statuses == (status,)
    assert len(found.media.frames) == (40 if status == "good" else frames)
    assert len(found.whole.frames) == 40
    assert bool(found.whole.frames[-1].any()) == (status == "good")
    assert found.coverage == pytest.approx(frames / 40)


def test_only_the_truth_until_answer_seconds_counts(pairs, tmp_path):
    asked = replace(pairs[0], answer_seconds=1.2)
    truth = read_truth(asked, VIEW)
    assert len(truth.frames) == 30
    assert len(truth.waveform) == 30 * 640
    found = made(tmp_path, truth, *film(9, frames=30))
    assert (found.statuses, found.coverage) == (("good",), 1.0)
    whole = read_truth(replace(pairs[0], answer_seconds=60.0), VIEW)
    assert len(whole.frames) == 40


def test_an_answer_that_is_cut_short_gains_in_no_measure(tmp_path, pairs, truth):
    reference = read_reference(pairs[0], VIEW)
    whole, seen = made(tmp_path, truth, *film(9)), set()
    for metric in Backends(video_frames=8)():
        true, face = metric.read(truth, truth), metric.read(reference) if metric.needs_reference else {}

        def values(found, metric=metric, true=true, face=face):
            value = metric.compare(metric.read(found.media, truth), true, face, pairs[0])
            return bounded_values(metric, value, metric.compare(true, true, face, pairs[0]), found.coverage)

        full = values(whole)
        for frames in (20, 8, 1):
            part = values(made(tmp_path, truth, *beginning(frames)))
            for column in metric.columns:
                if column.kind == "mean" and column.name not in CHANCE and not math.isnan(full[column.name]):
                    gain = worth(part[column.name], column.better) - worth(full[column.name], column.better)
                    assert gain <= 1e-6, (column.name, frames)
                    seen.add(column.name)
    assert len(seen) >= 14, "every measure but coherence, which needs candidates"


def test_silence_is_no_fault_where_the_truth_is_silent(tmp_path, truth):
    truth.waveform.zero_()
    assert made(tmp_path, truth, film(9)[0], None).statuses == ("good",)
