"""Bold only where a paired test says so; and one table only of what is unchanged and alike."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vidchat.bench.comparison import ENOUGH_PAIRS, surely_better
from vidchat.bench.metric import Column
from vidchat.bench.results import Number, PairScore, Result, ResultError, SystemResult, read_result
from vidchat.bench.systems import TRUTH
from vidchat.bench.table import TableError, latex, make_table, markdown

RNG = np.random.default_rng(5)


def system(name, values, better="higher", string="metric=M; pairs=1", dimension="video quality"):
    """A system of one column, from its pairs' values."""
    values = np.asarray(values, dtype=float)
    have = values[~np.isnan(values)]
    mean = float(have.mean()) if len(have) else math.nan
    number = Number(Column("M", better), dimension, False, string, mean, mean - 1, mean + 1, len(have), len(values))
    scores = {f"p{i}": PairScore({"M": float(value)}, ("good",), "", 1.0, None) for i, value in enumerate(values)}
    return SystemResult(name, [number], scores)


def result_of(*systems, date=""):
    pairs = [
        {"id": name, "hash": "h", "question": "", "answer": "", "initiator": {"path": "a.mp4"}, "reference": "b.png",
         "candidates": []}
        for name in systems[0].scores
    ]  # fmt: skip
    return Result("dyadic", pairs, "rule", systems, [], date)


def best(*systems):
    table = make_table([result_of(*systems)])
    return table.best(table.columns[0])


HARD = RNG.normal(20, 5, 30)  # pairs differ much more than systems do


def test_a_small_gain_on_every_pair_is_bold_though_the_intervals_overlap():
    better, worse = HARD + RNG.normal(0.5, 0.5, 30), HARD + RNG.normal(0, 0.5, 30)
    assert best(system("a", better), system("b", worse)) == "a"
    assert best(system("a", better, "lower"), system("b", worse, "lower")) == "b"
    assert best(system("a", better), system("b", worse), system("c", better)) is None, "a copy is not worse"


def test_noise_is_seldom_bold():
    noises = np.random.default_rng(1).normal(0, 1, (40, 2, 30))
    bold = [best(*(system(name, HARD + one) for name, one in zip("ab", noise, strict=True))) for noise in noises]
    assert bold.count(None) >= 36, "5 % by chance"


@pytest.mark.parametrize("pairs", [2, ENOUGH_PAIRS - 1, ENOUGH_PAIRS])
def test_few_pairs_tell_nothing_however_clear(pairs):
    found = best(system("a", np.arange(pairs) + 9.0), system("b", np.arange(pairs)))
    assert found == ("a" if pairs >= ENOUGH_PAIRS else None)


def test_built_in_systems_take_no_part():
    assert best(system(TRUTH, HARD + 9), system("a", HARD + 1), system("b", HARD)) == "a"
    assert best(system(TRUTH, HARD), system("a", HARD + 1)) is None, "of one system there is no best"


def test_only_pairs_that_both_have_count():
    first, second = HARD + 1, HARD.copy()
    second[3:] = math.nan
    assert best(system("a", first), system("b", second)) is None, "three common pairs are too few"


def distance(value, draws, count=30):
    return Number(
        Column("F", "lower", "frechet"), "q", True, "s", value, value, value, count, count, draws=tuple(draws)
    )


def test_distances_are_compared_on_the_same_resamples():
    shared = RNG.normal(10, 3, 100)
    near, far = distance(9.0, shared - 1), distance(10.0, shared)
    assert surely_better(near, far, {}, {}), "their difference is the same on every resample"
    assert not surely_better(far, near, {}, {})
    assert not surely_better(distance(9.0, RNG.normal(10, 3, 100)), far, {}, {}), "chance draws them apart"
    assert not surely_better(near, distance(10.0, shared, count=4), {}, {})
    assert not surely_better(near, distance(10.0, shared[:5]), {}, {})


def test_bold_is_in_every_form_of_the_table_and_stated():
    results = [result_of(system("a", HARD + 1), system("b", HARD))]
    assert "| a | **" in markdown(results)
    assert "| b | **" not in markdown(results)
    assert r"a & $\mathbf{" in latex(results)
    assert "paired bootstrap over the pairs" in markdown(results)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["systems"][0]["numbers"][0].update(value=99.0),
        lambda content: content["systems"][0]["scores"]["p0"]["values"].update(M=99.0),
        lambda content: content.update(date="yesterday"),
        lambda content: content["pairs"][0].update(id="other"),
        lambda content: content.pop("hash"),
        lambda content: content.update(hash="0" * 12),
        lambda content: content.update(format=1),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, edit):
    path = tmp_path / "scores.json"
    written = result_of(system("a", [*HARD, math.nan]), date="today")
    written.write(path)
    read = read_result(path)
    assert read.date == "today"
    assert read.systems[0].numbers == written.systems[0].numbers
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))  # the layout of a file is nobody's number
    read_result(path)
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=r"score again|holds no results"):
        read_result(path)


def test_the_advice_of_an_error_works():
    with pytest.raises(TableError, match=r"systems\.OTHERNAME=FOLDER"):
        make_table([result_of(system("a", HARD)), result_of(system("a", HARD + 1))])
    make_table([result_of(system("a", HARD)), result_of(system("b", HARD + 1))])
    with pytest.raises(TableError, match="score all systems on one of them"):
        make_table([result_of(system(TRUTH, HARD)), result_of(system(TRUTH, HARD + 1))])
    make_table([result_of(system(TRUTH, HARD)), result_of(system(TRUTH, HARD * (1 + 1e-8)))])
