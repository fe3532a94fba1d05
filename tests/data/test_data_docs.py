from __future__ import annotations

from pathlib import Path

from vidchat.data.manifest.manifest_file import COLUMNS
from vidchat.data.stats import Distributions, by_branch_and_tier

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "data.md"


def test_the_page_names_every_column() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name, (_, about) in COLUMNS.items() if f"`{name}`" not in page or about not in page] == []


def test_hours_add_up_over_splits() -> None:
    row = {"branch": "dialogue", "kind": "", "tier": "sft", "dialogues": 2, "answer_hours": 0.5, "hours": 1.0}
    (sums,) = by_branch_and_tier([row | {"split": "train"}, row | {"split": "val", "dialogues": 1}])
    assert (sums["dialogues"], sums["hours"], sums["answer_hours"]) == (3, 2.0, 1.0)
    assert (sums["train"], sums["val"], sums["test"]) == (2, 1, 0)


def test_histograms_equal_those_of_numpy() -> None:
    import numpy as np

    from vidchat.data.manifest.manifest_file import as_table

    values = [3.0, 3.1, 7.9, 14.0, 99.0]
    rows = [{"duration_s": value, "source": "x", "width": 1080, "height": 1920, "topic": " Tea"} for value in values]
    result = Distributions()
    for part in (rows[:2], rows[2:]):
        result.add(as_table(part))
    expected, _ = np.histogram(np.minimum(values, 15), 60, (0, 15))
    assert (result.histograms["duration_s"] == expected).all()
    assert result.sums["duration_s"] == [5, sum(values)]
    assert result.heights == {"1080p": 5}
    assert result.topics == {"tea": 5}
    assert result.sums["dover"] == [0, 0.0]
