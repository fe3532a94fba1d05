"""One bad clip or pair never ends a run: it is named, counted, and scored as missing."""

from __future__ import annotations

import errno
import json
import shutil

import pytest

from tests.bench import dying
from tests.bench.test_scoring import VIEW, Colour, number, run
from vidchat.bench.clips import read_truth
from vidchat.bench.contact_sheet import draw_sheet
from vidchat.bench.feature_cache import FeatureCache
from vidchat.bench.make import write_bench
from vidchat.bench.metric import BackendError, Column
from vidchat.bench.pairs import read_pairs
from vidchat.bench.processes import call_or_recover, in_processes
from vidchat.bench.responsiveness import read_log
from vidchat.bench.results import NOT_SCORED
from vidchat.bench.scoring import ScoreError
from vidchat.bench.systems import Folder
from vidchat.bench.table import markdown
from vidchat.data.report import Report
from vidchat.dialogue import Clip, Dialogue, Turn


@pytest.fixture
def asked(bench, tmp_path):
    return read_pairs(shutil.copytree(bench, tmp_path / "asked"))


@pytest.fixture
def system(tmp_path, pairs):
    folder = tmp_path / "system"
    folder.mkdir()
    for pair, other in zip(pairs, pairs[1:] + pairs[:1], strict=True):
        shutil.copy(other.truth.path, folder / f"{pair.id}.mp4")
    return Folder("ours", folder)


class Picky(Colour):
    """Fails on a clip of one brightness."""

    columns = (Column("FID", "lower", "frechet"), Column("hue", "lower", worst=255.0))
    failing: float | None = None

    def read(self, media, truth=None):
        if float(media.frames.double().mean()) == Picky.failing:
            raise RuntimeError("a network stumbled")
        return super().read(media)


@pytest.mark.parametrize("damage", ["gone", "broken", "a folder"])
def test_a_truth_that_cannot_be_read_is_left_out_for_all_and_named(asked, system, tmp_path, damage):
    path = asked[1].truth.path
    path.unlink()
    if damage == "broken":
        path.write_bytes(b"broken")
    elif damage == "a folder":
        path.mkdir()
    result = run(asked, [system], tmp_path)
    assert result.warnings[0].startswith("1 of 4 pairs are left out for all systems (p1: truth1.mp4")
    for name in ("truth", "shuffled truth", "frozen reference", "ours"):
        assert (number(result, name, "proxy-hue").count, number(result, name, "proxy-FID").count) == (3, 3)
    assert number(result, "shuffled truth", "proxy-FID").value == pytest.approx(0, abs=1e-9), "it is no other's floor"
    assert result.systems[-1].scores["p1"].statuses == NOT_SCORED
    assert "1 not scored" in markdown([result])
    assert str(tmp_path) not in result.warnings[0]


def test_a_reference_that_cannot_be_read_costs_its_pair_alone(asked, system, tmp_path):
    asked[2].reference.write_bytes(b"broken")

    class Faced(Colour):
        needs_reference = True

    result = run(asked, [system], tmp_path, lambda: [Faced()])
    assert "(p2: face2.png: " in result.warnings[0]
    assert number(result, "ours", "proxy-hue").count == 3


def test_a_clip_that_a_metric_fails_on_is_scored_as_missing(asked, system, tmp_path, monkeypatch):
    gone = Folder("gone", tmp_path / "gone")
    shutil.copytree(system.folder, gone.folder)
    (gone.folder / "p0.mp4").unlink()
    (system.folder / "p0.mp4").unlink()
    shutil.copy(asked[0].initiator.path, system.folder / "p0.mp4")
    truth = read_truth(asked[0], VIEW)
    scored = system.read(asked[0], system.source(asked[0]), truth, VIEW)
    monkeypatch.setattr(Picky, "failing", float(scored.media.frames.double().mean()))
    result = run(asked, [system, gone], tmp_path, lambda: [Picky()])
    ours = result.systems[3]
    assert ours.scores["p0"].statuses == ("unreadable",)
    assert ours.scores["p0"].note == "RuntimeError: a network stumbled"
    assert ours.scores["p0"].values == pytest.approx(result.systems[4].scores["p0"].values), "as if there were none"
    assert number(result, "ours", "proxy-hue").count == 4


def test_a_metric_that_fails_on_a_truth_costs_that_pair(asked, system, tmp_path, monkeypatch):
    truth = read_truth(asked[3], VIEW)
    monkeypatch.setattr(Picky, "failing", float(truth.frames.double().mean()))
    result = run(asked, [system], tmp_path, lambda: [Picky()])
    assert "1 of 4 pairs are left out for all systems (p3: RuntimeError: a network stumbled)" in result.warnings
    assert number(result, "ours", "proxy-FID").count == 3


def test_errors_that_affect_all_pairs_end_the_run(asked, system, tmp_path, monkeypatch):
    class Wrong(Colour):
        def read(self, media, truth=None):
            raise BackendError("give other weights")

    with pytest.raises(BackendError):
        run(asked, [system], tmp_path, lambda: [Wrong()])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patched:
        patched.setattr(FeatureCache, "save", full)
        with pytest.raises(OSError, match="No space"):
            run(asked, [system], tmp_path)
    for pair in asked:
        pair.truth.path.write_bytes(b"broken")
    with pytest.raises(ScoreError, match=r"none of the 4 pairs could be scored; the first: p0: truth0\.mp4"):
        run(asked, [system], tmp_path)


def test_a_process_that_dies_costs_its_item_and_no_more():
    items = [0, 1, 2, 3, 4, 6]
    results = list(in_processes(dying.half, items, 2, dying.start, ()))
    assert [item for item, _ in results] == items
    done = [call_or_recover(result, lambda error: type(error).__name__) for _, result in results]
    assert done == [0.0, "ValueError", 1.0, "BrokenProcessPool", 2.0, 3.0]


def test_a_sheet_is_drawn_though_the_first_truth_is_broken(asked, system, tmp_path):
    asked[0].truth.path.write_bytes(b"broken")
    draw_sheet(asked, {"ours": system.folder}, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("log", ['{"first_chunk_s": 1' + "0" * 400 + "}", "[" * 100_000, '{"a": 1' + "0" * 9999 + "}"])
def test_a_hostile_log_costs_itself_alone(tmp_path, log):
    (tmp_path / "x.json").write_text(log)
    values, note = read_log(tmp_path / "x.json")
    assert not values
    assert note.startswith("its log cannot be read")


@pytest.mark.parametrize(
    "name", ["x" * 300, "字" * 100, "../evil", "a/b", "", ".hidden", "a\0b", "a\nb", "con:aux", 'q"q']
)
def test_an_id_that_cannot_name_a_file_costs_its_pair(pairs, tmp_path, name):
    clip = pairs[0].truth.path

    def dialogue(name):
        return Dialogue(name, (Turn("initiator", Clip(clip, "ann")), Turn("responder", Clip(clip, "bob"))))

    report = write_bench([dialogue(name), dialogue("good"), dialogue("good")], tmp_path / "made", Report("pairs"))
    assert [pair.id for pair in read_pairs(tmp_path / "made")] == ["good"]
    assert [why.partition(";")[0].split()[-1] for _, why in report.skipped] == ["file", "before"]
    assert all(len(where) < 100 and len(why) < 300 for where, why in report.skipped)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_a_file_that_cannot_be_written_costs_its_pair(pairs, tmp_path, monkeypatch):
    from vidchat.bench import make

    link_clip = make._link_clip

    def refused(clip, output, name):
        if name.startswith("bad"):
            raise OSError(errno.ENAMETOOLONG, "File name too long", name)
        return link_clip(clip, output, name)

    monkeypatch.setattr(make, "_link_clip", refused)
    clip = pairs[0].truth.path
    turns = (Turn("initiator", Clip(clip, "ann")), Turn("responder", Clip(clip, "bob")))
    report = write_bench([Dialogue("bad", turns), Dialogue("good", turns)], tmp_path / "made", Report("pairs"))
    assert report.skipped == [("bad", "bad_initiator: File name too long")]
    lines = [json.loads(line) for line in (tmp_path / "made" / "pairs.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines[1:]] == ["good"]
