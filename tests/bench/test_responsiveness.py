from __future__ import annotations

import json

import pytest

from vidchat.bench.responsiveness import read_log


def log(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_log(path)


def test_totals_alone_are_taken_as_stated(tmp_path):
    assert log(tmp_path, {"first_chunk_s": 0.2, "real_time_factor": 0.5}) == (
        {"first chunk s": 0.2, "real-time factor": 0.5},
        "",
    )


def test_columns_are_computed_from_chunks(tmp_path):
    chunks = [{"ready_s": 0.2, "media_s": 0.16}, {"ready_s": 0.3, "media_s": 0.16}, {"ready_s": 0.62, "media_s": 0.16}]
    values, note = log(tmp_path, {"chunks": chunks})
    assert values == pytest.approx({"first chunk s": 0.2, "real-time factor": 0.62 / 0.48, "slowest chunk": 2.0})
    assert note == ""


def test_a_log_that_contradicts_itself_or_is_broken_is_named(tmp_path):
    chunks = [{"ready_s": 0.2, "media_s": 0.16}]
    assert "another first chunk s" in log(tmp_path, {"first_chunk_s": 0.01, "chunks": chunks})[1]
    for bad in (
        "{",
        '{"chunks": [{"ready_s": -1, "media_s": 1}]}',
        '{"first_chunk_s": "fast"}',
        "[1]",
        '{"chunks": []}',
        '{"chunks": [{"ready_s": 0.1, "media_s": 0}]}',
        '{"chunks": [{"ready_s": 0.1}]}',
    ):
        values, note = log(tmp_path, bad)
        assert values == {}
        assert "cannot be read" in note
    assert read_log(tmp_path / "none.json") == ({}, "")
