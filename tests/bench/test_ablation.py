from __future__ import annotations

import sys

import pytest

from vidchat.bench.ablation import (
    PUBLISHED,
    SWITCHES,
    AblationError,
    RowKey,
    ablation_table,
    as_json,
    generate,
    parse_row,
    result_rows,
)
from vidchat.bench.metric import Column
from vidchat.bench.orderings import orderings, orderings_text
from vidchat.bench.results import Number, PairScore, Result, SystemResult

FID, PSNR = Column("FID", "lower", "frechet", 2), Column("PSNR", "higher", "mean", 2)


def row(key, fid=30.0, psnr=(10.0, 20.0), weights="abc"):
    """Returns a row as read from a result: FID with an interval of +-1, PSNR of two pairs."""
    string = f"weights={weights}; protocol={key.protocol}"
    numbers = [
        Number(FID, "video quality", True, f"metric=FID; {string}", fid, fid - 1, fid + 1, 2, 2),
        Number(PSNR, "video quality", False, f"metric=PSNR; {string}", sum(psnr) / 2, min(psnr), max(psnr), 2, 2),
    ]
    scores = {f"p{i}": PairScore({"PSNR": value}, ("good",), "", 1.0, None) for i, value in enumerate(psnr)}
    systems = [SystemResult(name, numbers, scores) for name in ("truth", key.name)]
    (only,) = result_rows(Result(key.protocol, [{}, {}], "rule", systems, []))
    return only


NONE, AUDIO = RowKey("dyadic", ()), RowKey("dyadic", ("audio",))
ALL, ALL_CONDITIONED = RowKey("dyadic", SWITCHES), RowKey("conditioned", SWITCHES)


def test_rows_stand_under_the_published_ones_of_the_same_switches():
    rows = [row(ALL), row(RowKey("dyadic", ("spatial",)))]
    lines = ablation_table(rows).split("\n")
    published = next(i for i, line in enumerate(lines) if line.startswith("| dyadic, published | yes | yes | yes"))
    assert "32.35" in lines[published]
    assert lines[published + 1].startswith("| dyadic, **here** | yes | yes | yes | 30.00 [29.00, 31.00] *proxy* |")
    assert any(line.startswith("| dyadic, **here** | - | yes | - |") for line in lines), "a row the paper lacks"
    assert "2 pairs, published 500" in "\n".join(lines)
    assert as_json(rows)[0]["published"]["FVD"] == 28.82
    assert len(PUBLISHED) == 6


def test_rows_of_different_weights_are_said_to_be_incomparable():
    assert "cannot be compared" in ablation_table([row(NONE), row(AUDIO, weights="def")])
    assert "cannot be compared" not in ablation_table([row(ALL), row(ALL_CONDITIONED)]), "only the protocol differs"


@pytest.mark.parametrize(("fid", "outcome"), [(20.0, "yes"), (29.0, "not told apart"), (40.0, "no")])
def test_distances_are_ordered_where_their_intervals_do_not_overlap(fid, outcome):
    by_column = {item.column: item for item in orderings([row(NONE), row(AUDIO, fid)])}
    assert by_column["FID"].published == "better"
    assert by_column["FID"].outcome == outcome
    assert "PSNR" not in by_column, "the paper has no PSNR of the second row"
    assert f"| FID | better | {by_column['FID'].here} | {outcome} |" in orderings_text(list(by_column.values()))


@pytest.mark.parametrize(
    ("psnr", "outcome"), [((10.1, 20.2), "yes"), ((9.0, 21.5), "not told apart"), ((9.9, 19.9), "no")]
)
def test_means_are_ordered_by_the_pairs_differences_however_wide_their_intervals(psnr, outcome):
    by_column = {item.column: item for item in orderings([row(ALL_CONDITIONED), row(ALL, psnr=psnr)])}
    assert by_column["PSNR"].outcome == outcome


def test_a_system_answers_by_the_command_that_is_given(tmp_path):
    code = "import sys; open(sys.argv[3] + '/words', 'w').write(' '.join(sys.argv[1:3]))"
    generate(f'{sys.executable} -c "{code}" {{release}} {{pairs}} {{output}}', tmp_path / "a b", tmp_path, tmp_path)
    assert (tmp_path / "words").read_text() == f"{tmp_path / 'a b'} {tmp_path}"


def test_a_command_that_fails_over_some_pairs_has_answered_the_others(tmp_path):
    code = "import sys; open(sys.argv[1] + '/p0.mp4', 'w'); sys.exit(1)"
    message = generate(f'{sys.executable} -c "{code}" {{output}}', tmp_path, tmp_path, tmp_path)
    assert "code 1" in message
    assert "its 1 clips are scored, the others as missing" in message


@pytest.mark.parametrize("template", ["true {checkpoint}", "no-such-command {release}", "false", "true {}"])
def test_a_command_that_fails_is_reported_in_a_sentence(template, tmp_path):
    with pytest.raises(AblationError):
        generate(template, tmp_path, tmp_path, tmp_path)


@pytest.mark.parametrize("text", ["dyadic={}", "dyadic:magic={}", "other:none={}", "dyadic:none={}/nowhere"])
def test_an_invalid_row_is_refused_in_a_sentence(text, tmp_path):
    assert parse_row(f"dyadic:noise,audio,spatial={tmp_path}") == (ALL, tmp_path)
    with pytest.raises(AblationError):
        parse_row(text.format(tmp_path))
