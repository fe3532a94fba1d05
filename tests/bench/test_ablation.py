from __future__ import annotations

import pytest

from vidchat.bench.ablation import PUBLISHED, SWITCHES, ablation_table, as_json, read_row
from vidchat.bench.measure import Column
from vidchat.bench.results import Number, PairScore, Result, ResultError, SystemResult


@pytest.fixture
def scores(tmp_path):
    def write(value=30.0, protocol="dyadic", weights="abc"):
        string = f"metric=FID; weights={weights}; protocol={protocol}; pairs=1"
        number = Number(Column("FID", "lower", "frechet", 2), "video quality", True, string, value, 29.0, 31.0, 1, 1)
        system = SystemResult("ours", [number], {"p": PairScore({}, ("good",), "", 1.0, None)})
        pair = {"id": "p", "question": "", "answer": "", "candidates": [], "initiator": {}, "reference": ""}
        path = tmp_path / f"{protocol}{weights}.json"
        Result(protocol, [pair], "rule", [system], []).write(path)
        return path

    return write


def test_rows_stand_under_the_published_ones_of_the_same_switches(scores):
    rows = [read_row(f"dyadic:noise,audio,spatial={scores()}:ours"), read_row(f"dyadic:spatial={scores()}:ours")]
    assert rows[0].switches == SWITCHES
    lines = ablation_table(rows).split("\n")
    published = next(i for i, line in enumerate(lines) if line.startswith("| dyadic, published | yes | yes | yes"))
    assert "32.35" in lines[published]
    assert lines[published + 1].startswith("| dyadic, **ours** | yes | yes | yes | 30.00 [29.00, 31.00] *proxy* |")
    assert any(line.startswith("| dyadic, **ours** | - | yes | - |") for line in lines), "a row the paper lacks"
    assert "1 pairs, published 500" in "\n".join(lines)
    assert as_json(rows)[0]["published"]["FVD"] == 28.82
    assert len(PUBLISHED) == 6


def test_rows_of_different_protocols_are_said_to_be_incomparable(scores):
    rows = [read_row(f"dyadic:none={scores()}:ours"), read_row(f"dyadic:audio={scores(weights='def')}:ours")]
    assert "cannot be compared" in ablation_table(rows)
    same = [
        read_row(f"dyadic:none={scores()}:ours"),
        read_row(f"conditioned:none={scores(protocol='conditioned')}:ours"),
    ]
    assert "cannot be compared" not in ablation_table(same)


@pytest.mark.parametrize(
    "text", ["dyadic=x.json:ours", "dyadic:magic={}:ours", "dyadic:none={}:theirs", "conditioned:none={}:ours"]
)
def test_what_does_not_fit_is_refused_in_a_sentence(scores, text):
    with pytest.raises(ResultError):
        read_row(text.format(scores()))
