"""A complete run on short clips: four pairs, a system with faults, the built-in systems, and the cache."""

from __future__ import annotations

import json
import math
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from vidchat.bench import pair_scorer
from vidchat.bench.clips import View
from vidchat.bench.metric import ABSENT_FACTOR, Column, Metric
from vidchat.bench.report_page import write_page
from vidchat.bench.results import read_result
from vidchat.bench.scoring import score
from vidchat.bench.systems import Folder
from vidchat.bench.table import TableError, latex, make_table, markdown
from vidchat.data.media.read import read_clip

VIEW = View((48, 48))


class Colour(Metric):
    """The mean colour as features, and its distance from the truth's as value; counts its calls of `read`."""

    dimension = "video quality"
    columns = (Column("FID", "lower", "frechet"), Column("hue", "lower", worst=255.0))
    reads = 0

    def __init__(self, weights="abc"):
        self.weights = weights

    def spec(self):
        return {"backend": "colour", "weights": self.weights}

    def read(self, media, truth=None):
        Colour.reads += 1
        colour = media.frames[::8].double().mean((2, 3)).numpy()
        return {"rows": colour}

    def compare(self, made, true, reference, pair):
        return {"hue": float(np.abs(made["rows"].mean(0) - true["rows"].mean(0)).mean())}


def colour():
    return [Colour()]


def other_colour():
    return [Colour("def")]


@pytest.fixture
def system(tmp_path, pairs):
    """Two right answers, one missing, one broken."""
    folder = tmp_path / "system"
    folder.mkdir()
    for pair in pairs[:2]:
        shutil.copy(pair.truth.path, folder / f"{pair.id}.mp4")
    (folder / "p3.mp4").write_bytes(b"broken")
    (folder / "p0.json").write_text('{"first_chunk_s": 0.25, "real_time_factor": 0.5}')
    return Folder("ours", folder)


def run(pairs, systems, tmp_path, build=colour, **more):
    return score(pairs, systems, build, VIEW, tmp_path / "features", resamples=10, **more)


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def number(result, system, column):
    numbers = next(s for s in result.systems if s.name == system).numbers
    return next(n for n in numbers if n.column.name == column)


def test_all_pairs_of_all_systems_are_scored(pairs, system, tmp_path):
    result = run(pairs, [system], tmp_path)
    assert [s.name for s in result.systems] == ["truth", "shuffled truth", "frozen reference", "ours"]
    ours = result.systems[-1]
    assert ours.counts() == {"good": 2, "missing": 1, "unreadable": 1}
    assert list(ours.bad()) == ["p2", "p3"]
    assert number(result, "ours", "proxy-hue").count == 4
    assert ours.scores["p0"].values["proxy-hue"] == pytest.approx(0)
    assert ours.scores["p2"].values["proxy-hue"] == 255, "a missing clip gets the worst value"
    assert number(result, "truth", "proxy-FID").value == pytest.approx(0, abs=1e-9)
    assert number(result, "shuffled truth", "proxy-FID").value == pytest.approx(0, abs=1e-9)
    assert number(result, "shuffled truth", "proxy-hue").value > 1
    fid = number(result, "ours", "proxy-FID")
    assert fid.low <= fid.value <= fid.high
    assert number(result, "ours", "first chunk s").value == 0.25
    assert number(result, "ours", "first chunk s").count == 1


def test_clips_with_wrong_names_and_broken_logs_of_good_clips_are_reported(pairs, system, tmp_path):
    shutil.copy(pairs[2].truth.path, system.folder / "p2_answer.mp4")
    shutil.copy(pairs[2].truth.path, system.folder / "p2.MP4")
    (system.folder / "p1.json").write_text('{"chunks": [{"ready_s": 1, "media_s": 0}]}')
    result = run(pairs, [system], tmp_path)
    (system.folder / "p0.json").write_text('{"first_chunk_s": 0.25, "protocol": "conditioned", "pair": "0123"}')
    result = run(pairs, [system], tmp_path)
    assert "1 of its logs say that it answered by protocol 'conditioned', and not 'dyadic'" in result.warnings[1]
    assert "1 of its logs say that it answered other pairs of these ids (p0)" in result.warnings[2]
    assert result.warnings[0].startswith("'ours': 2 of its clips belong to no pair (p2.MP4, p2_answer.mp4)")
    assert result.systems[-1].counts() == {"good": 2, "missing": 1, "unreadable": 1}
    text = markdown([result])
    assert "`p1`: good (its log cannot be read ('media_s' must be more than 0))" in text
    assert "`p3`: unreadable (p3.mp4: cannot be decoded (Invalid data found when processing input))" in text
    assert "of its clips" in text


def test_a_set_distance_is_that_of_all_features_at_once(pairs, system, tmp_path):
    from vidchat.bench.frechet import Gaussian, frechet_distance

    result = run(pairs, [system], tmp_path)
    size = {"fps": 25, "size": VIEW.size, "sample_rate": 16000}
    true = np.concatenate([Colour().read(read_clip(pair.truth, **size))["rows"] for pair in pairs])
    made = true.copy()
    made[10:] *= ABSENT_FACTOR  # five frames of each clip; the third and fourth clips are absent
    expected = frechet_distance(Gaussian(3).update(true), Gaussian(3).update(made))
    assert number(result, "ours", "proxy-FID").value == pytest.approx(expected, rel=1e-9)


def test_a_second_run_decodes_nothing_and_gives_the_same_file(pairs, system, tmp_path, monkeypatch):
    run(pairs, [system], tmp_path).write(tmp_path / "1.json")
    before = Colour.reads
    monkeypatch.setattr(pair_scorer, "read_truth", lambda *_: pytest.fail("decoded again"))
    run(pairs, [system], tmp_path).write(tmp_path / "2.json")
    assert Colour.reads == before
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_changed_clip_or_metric_is_read_again(pairs, system, tmp_path):
    first = run(pairs, [system], tmp_path)
    shutil.copy(pairs[2].truth.path, system.folder / "p2.mp4")
    assert run(pairs, [system], tmp_path).systems[-1].counts() == {"good": 3, "unreadable": 1}
    before = Colour.reads
    second = run(pairs, [system], tmp_path, other_colour)
    assert Colour.reads > before
    assert number(first, "ours", "proxy-FID").protocol != number(second, "ours", "proxy-FID").protocol


def test_numbers_of_different_protocols_never_share_a_column(pairs, system, tmp_path):
    results = [run(pairs, [system], tmp_path, build) for build in (colour, other_colour)]
    results.append(run(pairs, [system], tmp_path, protocol="conditioned"))
    table = make_table(results)
    fids = [column for column in table.columns if column.column.name == "proxy-FID"]
    assert [table.head(column) for column in fids] == [f"proxy-FID ({run})" for run in (1, 2, 3)]
    for column in table.columns:
        protocols = {n.protocol for s in table.systems if (n := table.cell(s, column)) is not None}
        assert protocols == {column.protocol}


def test_two_answers_under_one_name_are_refused(pairs, system, tmp_path):
    first = run(pairs, [system], tmp_path)
    (system.folder / "p1.mp4").unlink()
    with pytest.raises(TableError, match="'ours'"):
        make_table([first, run(pairs, [system], tmp_path)])
    with pytest.raises(ValueError, match="names of their own"):
        run(pairs, [Folder("truth", system.folder)], tmp_path)


def test_processes_do_not_change_the_numbers(pairs, system, tmp_path):
    run(pairs[:2], [system], tmp_path).write(tmp_path / "1.json")
    more = score(pairs[:2], [system], colour, VIEW, tmp_path / "other", workers=2, resamples=10)
    more.write(tmp_path / "2.json")
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_task_is_pickled_without_its_backends(tmp_path):
    task = pair_scorer.Task([], colour, VIEW, tmp_path)
    assert task.specs == ["backend=colour; weights=abc"]
    sent = pickle.loads(pickle.dumps(task))
    assert not {"metrics", "specs"} & set(vars(sent)), "networks would be copied, and ONNX sessions refuse to be"


def test_the_report_is_complete_and_the_page_is_safe_and_self_contained(pairs, system, tmp_path):
    run(pairs, [system], tmp_path).write(tmp_path / "scores.json")
    result = read_result(tmp_path / "scores.json")
    text, rows = markdown([result]), latex([result])
    for word in (
        "proxy-FID ↓",
        "Bold: better than every other system by a paired bootstrap",
        "0.250 (1 of 4)",
        "1 missing",
        "`p3`: unreadable",
        "metric=proxy-FID",
        "weights=abc",
        "No pair is left out for a system's clip",
    ):
        assert word in text
    assert rows.count(r"\\") == 5
    page = write_page([result], tmp_path / "page" / "index.html", embed=1).read_text()
    data = data_of(page)
    assert data["pairs"][0]["answer"] == "yes </script> & so"
    assert data["pairs"][0]["systems"]["ours"]["clip"]["src"].startswith("data:video/mp4;base64,")
    other = data["pairs"][1]["systems"]["ours"]["clip"]["src"]
    assert (tmp_path / "page" / other).resolve() == (system.folder / "p1.mp4").resolve()
    assert data["pairs"][3]["systems"]["ours"]["statuses"] == ["unreadable"]
    assert not re.search(r"(?i)https?://|<link|@import|src=['\"]?http", page), "no outside part"


def test_few_features_raise_a_warning(pairs, tmp_path):
    class Wide(Colour):
        columns = (Column("FID", "lower", "frechet"),)

        def spec(self):
            return {"backend": "wide"}

        def read(self, media, truth=None):
            return {"rows": np.repeat(super().read(media)["rows"], 20, axis=1)}

        def compare(self, *_):
            return {}

    assert "20 features of 60 dimensions" in run(pairs, [], tmp_path, lambda: [Wide()]).warnings[0]


def test_a_number_of_one_pair_is_not_the_best_of_all(pairs, system, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(system.folder, other)
    for name in ("p0", "p1", "p2", "p3"):
        (other / f"{name}.json").write_text('{"first_chunk_s": 0.9, "real_time_factor": 0.9}')
    table = make_table([run(pairs, [system, Folder("theirs", other)], tmp_path)])
    first = next(column for column in table.columns if column.column.name == "first chunk s")
    assert table.cell("ours", first).value == 0.25
    assert table.best(first) is None, "one has a value of one pair, the other of two"


def test_a_value_that_no_pair_has_stands_in_the_table_with_the_reason(pairs, tmp_path):
    class Undefined(Colour):
        needs = "people who are blue"

        def compare(self, *_):
            return {"hue": math.nan}

    result = run(pairs, [], tmp_path, lambda: [Undefined()])
    result.write(tmp_path / "scores.json")
    result = read_result(tmp_path / "scores.json")
    assert number(result, "truth", "proxy-hue").count == 0
    assert make_table([result]).missing()["proxy-hue"] == "people who are blue"
    text = markdown([result])
    assert "| – |" in text
    assert "- **proxy-hue**: people who are blue" in text
    assert "% proxy-hue: not measured: people who are blue" in latex([result])
    page = write_page([result], tmp_path / "index.html", embed=0).read_text()
    assert "<b>proxy-hue</b>: not measured: people who are blue" in page


def test_a_metric_that_needs_candidates_reads_nothing_without_them(pairs, tmp_path):
    class Heard(Colour):
        needs_candidates = True

        def spec(self):
            return {"backend": "heard"}

        def read(self, media, truth=None):
            pytest.fail("read though there is nothing to compare with")

    bare = [replace(pair, candidates=()) for pair in pairs]
    Heard.columns = (Column("coherence", "higher"),)
    result = run(bare, [], tmp_path, lambda: [Colour(), Heard(), Colour("last")])
    assert number(result, "frozen reference", "proxy-hue").value > 0
    assert "`vidchat bench candidates` makes them" in number(result, "truth", "proxy-coherence").reason


def test_one_name_in_two_runs_is_two_systems_on_the_page(pairs, system, tmp_path):
    class Shade(Colour):
        def spec(self):
            return {"backend": "shade"}

        def compare(self, *features):
            return {"hue": 1 + super().compare(*features)["hue"]}

    results = [
        run(pairs, [system], tmp_path),
        run(pairs, [system], tmp_path, lambda: [Shade()], protocol="conditioned"),
    ]
    page = write_page(results, tmp_path / "index.html", embed=0).read_text()
    systems = data_of(page)["pairs"][0]["systems"]
    first, second = (systems[name]["values"]["proxy-hue"] for name in ("ours", "ours (run 2, conditioned)"))
    assert second == pytest.approx(1 + first)
