"""Bad clips of each kind, by the rules of the benchmark."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.bench.conftest import talking_clip
from vidchat.bench.clips import View, find_clip, read_answer, read_reference, read_truth
from vidchat.bench.comparison import oriented
from vidchat.bench.metric import bounded_values
from vidchat.bench.suite import Backends
from vidchat.data.media.read import write_clip
from vidchat.dialogue import Clip

VIEW = View((48, 48))
RANDOM = ("offset",)  # hardly more than chance for one clip, so that of a shorter answer may be nearer to 0


@pytest.fixture
def truth(pairs):
    return read_truth(pairs[0], VIEW)


def read(tmp_path, truth, frames, audio):
    path = tmp_path / "x.mp4"
    write_clip(path, frames, audio, 25, 16000)
    return read_answer(Clip(path, ""), truth, VIEW)


def beginning(frames):
    """Returns an answer that ends after so many frames."""
    video, audio = talking_clip(9)
    return video[:frames], audio[: 640 * frames]


def test_a_good_clip_is_scored_as_it_is(tmp_path, truth):
    scored = read(tmp_path, truth, *talking_clip(9))
    assert scored.statuses == ("good",)
    assert scored.note == ""
    assert scored.media.frames.shape == truth.frames.shape


def test_a_missing_clip_is_black_and_silent_and_as_long_as_the_truth(truth, tmp_path):
    assert find_clip(tmp_path, "p0") is None
    scored = read_answer(None, truth, VIEW)
    assert scored.statuses == ("missing",)
    assert scored.media.frames.shape == truth.frames.shape
    assert scored.media.waveform.shape == truth.waveform.shape
    assert not scored.media.frames.any()
    assert not scored.media.waveform.any()


@pytest.mark.parametrize("content", [b"", b"not a film" * 50, None])
def test_an_unreadable_clip_is_scored_like_a_missing_one(tmp_path, truth, content):
    path = tmp_path / "x.mp4"
    write_clip(path, *talking_clip(9), 25, 16000)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    scored = read_answer(Clip(path, ""), truth, VIEW)
    assert scored.statuses == ("unreadable",)
    assert "x.mp4" in scored.note
    assert not scored.media.frames.any()


@pytest.mark.parametrize("audio", [None, torch.zeros(40 * 640)])
def test_a_silent_clip_keeps_its_frames(tmp_path, truth, audio):
    scored = read(tmp_path, truth, talking_clip(9)[0], audio)
    assert scored.statuses == ("silent",)
    assert scored.media.frames.any()
    assert scored.media.waveform.abs().max() < 1e-3


def test_a_short_clip_is_filled_up_with_black_in_a_set_alone(tmp_path, truth):
    scored = read(tmp_path, truth, *talking_clip(9, frames=20))
    assert scored.statuses == ("short",)
    assert len(scored.media.frames) == 20
    assert len(scored.media.waveform) == 20 * 640
    assert len(scored.media_for_sets.frames) == len(truth.frames)
    assert scored.media_for_sets.frames[:20].any()
    assert not scored.media_for_sets.frames[20:].any()
    assert len(scored.media_for_sets.waveform) == len(truth.waveform)
    assert scored.seconds == pytest.approx(0.8)
    assert scored.coverage == pytest.approx(0.5)


@pytest.mark.parametrize("frames", [41, 43, 90])
def test_an_answer_longer_than_the_truth_is_cut_and_no_fault(tmp_path, truth, frames):
    scored = read(tmp_path, truth, *talking_clip(9, frames=frames))
    assert scored.statuses == ("good",)
    assert len(scored.media.frames) == len(truth.frames)
    assert len(scored.media.waveform) == len(truth.waveform)
    assert scored.coverage == 1.0


@pytest.mark.parametrize(("frames", "status"), [(39, "good"), (35, "good"), (34, "short"), (1, "short")])
def test_the_last_frame_is_held_within_the_tolerance_and_no_longer(tmp_path, truth, frames, status):
    scored = read(tmp_path, truth, *beginning(frames))
    assert scored.statuses == (status,)
    assert len(scored.media.frames) == (40 if status == "good" else frames)
    assert len(scored.media_for_sets.frames) == 40
    assert bool(scored.media_for_sets.frames[-1].any()) == (status == "good")
    assert scored.coverage == pytest.approx(frames / 40)


def test_only_the_truth_until_answer_seconds_counts(pairs, tmp_path):
    asked = replace(pairs[0], answer_seconds=1.2)
    truth = read_truth(asked, VIEW)
    assert len(truth.frames) == 30
    assert len(truth.waveform) == 30 * 640
    scored = read(tmp_path, truth, *talking_clip(9, frames=30))
    assert (scored.statuses, scored.coverage) == (("good",), 1.0)
    whole = read_truth(replace(pairs[0], answer_seconds=60.0), VIEW)
    assert len(whole.frames) == 40


def test_an_answer_that_is_cut_short_gains_in_no_metric(tmp_path, pairs, truth):
    reference = read_reference(pairs[0], VIEW)
    whole, seen = read(tmp_path, truth, *talking_clip(9)), set()
    for metric in Backends(video_frames=8)():
        true, face = metric.read(truth, truth), metric.read(reference) if metric.needs_reference else {}

        def values(scored, metric=metric, true=true, face=face):
            value = metric.compare(metric.read(scored.media, truth), true, face, pairs[0])
            return bounded_values(metric, value, metric.compare(true, true, face, pairs[0]), scored.coverage)

        full = values(whole)
        for frames in (20, 8, 1):
            part = values(read(tmp_path, truth, *beginning(frames)))
            for column in metric.columns:
                if column.kind == "mean" and column.name not in RANDOM and not math.isnan(full[column.name]):
                    gain = oriented(part[column.name], column.better) - oriented(full[column.name], column.better)
                    assert gain <= 1e-6, (column.name, frames)
                    seen.add(column.name)
    assert len(seen) >= 14, "every metric but coherence, which needs candidates"


def test_silence_is_no_fault_where_the_truth_is_silent(tmp_path, truth):
    truth.waveform.zero_()
    assert read(tmp_path, truth, talking_clip(9)[0], None).statuses == ("good",)
