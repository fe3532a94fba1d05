"""Assignment of the true answers' lengths to a system's answers, for distances between sets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from tests.bench.conftest import talking_clip
from tests.bench.test_scoring import VIEW, number, run
from vidchat.bench.clips import View, read_truth
from vidchat.bench.spans import assign_spans, count_frames
from vidchat.bench.systems import Folder
from vidchat.data.media.read import read_clip, write_clip
from vidchat.dialogue import Clip


@pytest.mark.parametrize(
    ("lengths", "spans", "expected"),
    [
        ([46, 60, 36], [36, 46, 60], [46, 60, 36]),  # the truths in another order
        ([99, 99, 99], [36, 46, 60], [36, 46, 60]),  # long enough
        ([1, 1, 1], [36, 46, 60], [36, 46, 60]),  # too short, wherever they count
        ([36, 46, 60], [36, 46, 60], [36, 46, 60]),
        ([35, 45, 59], [36, 46, 60], [36, 46, 60]),
        ([], [], []),
    ],
)
def test_each_keeps_its_own_length_where_nothing_is_gained(lengths, spans, expected):
    assert assign_spans(lengths, spans) == expected


@pytest.mark.parametrize("seed", range(20))
def test_the_fewest_frames_are_missing_and_all_lengths_count(seed):
    lengths, spans = np.random.default_rng(seed).integers(1, 12, (2, 5)).tolist()
    missing = lambda order: sum(max(0, span - length) for length, span in zip(lengths, order, strict=True))  # noqa: E731
    chosen = assign_spans(lengths, spans)
    assert sorted(chosen) == sorted(spans), "a short answer shortens nothing that is counted"
    assert missing(chosen) == min(map(missing, itertools.permutations(spans)))


def test_only_frames_that_count_are_counted(tmp_path):
    write_clip(tmp_path / "a.mp4", *talking_clip(0, 40), 25, 16000)
    clip = Clip(tmp_path / "a.mp4", "")
    assert [count_frames(clip, 25, longest) for longest in (None, 1.0, 99.0)] == [40, 25, 40]
    assert count_frames(Clip(clip.path, "", start=0.04), 25, None) == 39
    assert count_frames(Clip(clip.path, "", start=0.2, end=0.6), 25, None) == 10
    (tmp_path / "broken.mp4").write_bytes(b"broken")
    assert [count_frames(Clip(tmp_path / name, ""), 25, None) for name in ("broken.mp4", "none.mp4")] == [0, 0]


def test_missing_and_broken_clips_keep_the_length_of_their_truth(pairs, tmp_path):
    for pair, frames in zip(pairs, (10, 40, 40, 40), strict=True):
        write_clip(tmp_path / f"{pair.id}.mp4", *talking_clip(0, frames), 25, 16000)
    (tmp_path / "p1.mp4").write_bytes(b"broken")
    (tmp_path / "p2.mp4").unlink()
    assert Folder("a", tmp_path).assign_spans(pairs, 25).spans == {}, "all true answers are of one length"


def test_clips_compared_with_the_truth_are_as_long_as_it(pairs, tmp_path):
    write_clip(tmp_path / "truth.mp4", *talking_clip(9, 20), 25, 16000)
    asked = [pairs[0], replace(pairs[1], truth=Clip(tmp_path / "truth.mp4", "x"))]
    write_clip(tmp_path / f"{asked[0].id}.mp4", *talking_clip(1, 20), 25, 16000)
    write_clip(tmp_path / f"{asked[1].id}.mp4", *talking_clip(2, 40), 25, 16000)
    system, view = Folder("a", tmp_path).assign_spans(asked, 25), View((48, 48))
    assert system.spans == {asked[0].id: 20, asked[1].id: 40}
    scored = [system.read(pair, system.source(pair), read_truth(pair, view), view) for pair in asked]
    assert [len(one.media.frames) for one in scored] == [20, 20]
    assert [len(one.media_for_sets.frames) for one in scored] == [20, 40]
    assert [one.coverage for one in scored] == [0.5, 1.0], "an early end shows, pair by pair"


def test_a_missing_share_counts_as_the_worst_and_in_sets_as_black(pairs, tmp_path):
    half, whole = Folder("half", tmp_path / "half"), Folder("whole", tmp_path / "whole")
    for pair in pairs:
        truth = read_clip(pair.truth, fps=25, size=VIEW.size, sample_rate=16000)
        for folder, frames in ((half.folder, 20), (whole.folder, 40)):
            folder.mkdir(exist_ok=True)
            write_clip(folder / f"{pair.id}.mp4", truth.frames[:frames], truth.waveform[: 640 * frames], 25, 16000)
    result = run(pairs, [half, whole], tmp_path)
    hues = {name: number(result, name, "proxy-hue").value for name in ("half", "whole")}
    assert hues["whole"] < 3
    assert hues["half"] == pytest.approx(0.5 * 255 + 0.5 * hues["whole"], abs=2), "as good as the whole, half of it"
    assert number(result, "half", "proxy-FID").value > 100 * number(result, "whole", "proxy-FID").value
    again = run(pairs, [half, whole], tmp_path)
    assert [n.value for s in again.systems for n in s.numbers] == pytest.approx(
        [n.value for s in result.systems for n in s.numbers], nan_ok=True
    ), "from the cache"
