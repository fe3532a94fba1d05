"""Bad clips, one of each kind, by the stated rule."""

from __future__ import annotations

import pytest
import torch

from tests.bench.conftest import film
from vidchat.bench.clips import View, find, read_made, read_truth
from vidchat.data.media.read import write_clip
from vidchat.dialogue import Clip

VIEW = View((48, 48))


@pytest.fixture
def truth(pairs):
    return read_truth(pairs[0], VIEW)


def made(tmp_path, truth, pictures, sound):
    path = tmp_path / "x.mp4"
    write_clip(path, pictures, sound, 25, 16000)
    return read_made(Clip(path, ""), truth, VIEW)


def test_a_good_clip_is_scored_as_it_is(tmp_path, truth):
    found = made(tmp_path, truth, *film(9))
    assert found.statuses == ("good",)
    assert found.note == ""
    assert found.media.pictures.shape == truth.pictures.shape


def test_a_missing_clip_is_black_and_silent_and_as_long_as_the_truth(truth, tmp_path):
    assert find(tmp_path, "p0") is None
    found = read_made(None, truth, VIEW)
    assert found.statuses == ("missing",)
    assert found.media.pictures.shape == truth.pictures.shape
    assert found.media.waveform.shape == truth.waveform.shape
    assert not found.media.pictures.any()
    assert not found.media.waveform.any()


@pytest.mark.parametrize("content", [b"", b"not a film" * 50, None])
def test_an_unreadable_clip_is_scored_like_a_missing_one(tmp_path, truth, content):
    path = tmp_path / "x.mp4"
    write_clip(path, *film(9), 25, 16000)
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    found = read_made(Clip(path, ""), truth, VIEW)
    assert found.statuses == ("unreadable",)
    assert "x.mp4" in found.note
    assert not found.media.pictures.any()


@pytest.mark.parametrize("sound", [None, torch.zeros(40 * 640)])
def test_a_silent_clip_keeps_its_pictures(tmp_path, truth, sound):
    found = made(tmp_path, truth, film(9)[0], sound)
    assert found.statuses == ("silent",)
    assert found.media.pictures.any()
    assert found.media.waveform.abs().max() < 1e-3


def test_a_short_clip_is_filled_up_with_black(tmp_path, truth):
    found = made(tmp_path, truth, *film(9, pictures=20))
    assert found.statuses == ("short",)
    assert len(found.media.pictures) == len(truth.pictures)
    assert found.media.pictures[:20].any()
    assert not found.media.pictures[20:].any()
    assert len(found.media.waveform) == len(truth.waveform)
    assert found.seconds == pytest.approx(0.8)


def test_a_long_clip_is_cut(tmp_path, truth):
    found = made(tmp_path, truth, *film(9, pictures=90))
    assert found.statuses == ("long",)
    assert len(found.media.pictures) == int(1.25 * len(truth.pictures))


@pytest.mark.parametrize("pictures", [32, 40, 50])
def test_within_bounds_length_is_free(tmp_path, truth, pictures):
    found = made(tmp_path, truth, *film(9, pictures=pictures))
    assert found.statuses == ("good",)
    assert len(found.media.pictures) == pictures


def test_silence_is_no_fault_where_the_truth_is_silent(tmp_path, truth):
    truth.waveform.zero_()
    assert made(tmp_path, truth, film(9)[0], None).statuses == ("good",)
