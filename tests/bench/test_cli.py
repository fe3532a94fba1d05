"""The commands of `vidchat bench`."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vidchat.cli import app
from vidchat.reports.sheet import GAP, LINE, MARGIN


def run(*words):
    return CliRunner().invoke(app, ["bench", *map(str, words)])


@pytest.fixture
def system(pairs, tmp_path):
    folder = tmp_path / "system"
    folder.mkdir()
    for pair in pairs[:3]:
        shutil.copy(pair.truth.path, folder / f"{pair.id}.mp4")
    return folder


def test_score_then_report(bench, system, tmp_path):
    out = tmp_path / "out"
    result = run("score", bench, f"systems.ours={system}", "-o", out, "resamples=5", "video_frames=4")
    assert result.exit_code == 0, result.output
    assert "3 good, 1 missing" in result.output
    for name in ("scores.json", "report.md", "report.tex", "index.html"):
        assert (out / name).stat().st_size > 500
    scores = json.loads((out / "scores.json").read_text())
    columns = {number["column"]["name"] for number in scores["systems"][3]["numbers"]}
    proxies = {f"proxy-{name}" for name in ("FID", "FVD", "ArcFace", "Sync-C", "Sync-D", "emotion FID", "SIM-o")}
    assert proxies | {"PSNR", "SSIM", "coverage"} <= columns
    assert not {"FID", "ArcFace"} & columns, "a proxy's number never stands under the canonical name"
    again = run("report", out / "scores.json", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "again" / "report.md").read_text() == (out / "report.md").read_text()


def test_ablation_answers_scores_and_orders_rows(bench, system, tmp_path):
    code = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    rows = [f"rows.{row}={system}" for row in ("dyadic:none", "dyadic:audio", "conditioned:none")]
    command = f'{sys.executable} -c "{code}" {{release}} {{output}}'
    table = run("ablation", bench, *rows, "-o", tmp_path, f"generate={command}", "video_frames=4")
    assert table.exit_code == 0, table.output
    assert "| dyadic none → dyadic audio | FID | better | equal | not told apart |" in table.output
    assert (tmp_path / "dyadic" / "audio").is_dir()
    with Image.open(tmp_path / "ablation.png") as sheet:
        sheet = np.asarray(sheet.convert("RGB")).astype(int)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    lines = sheet.reshape(4, -1, *sheet.shape[1:])[:, LINE:-GAP]  # the truth and three rows, which are copies of it
    third = (np.flatnonzero((lines[0] != 255).any(axis=(0, 2)))[-1] + 1) // 3
    assert np.array_equal(lines[0][:, : 2 * third], lines[1][:, : 2 * third])
    written = json.loads((tmp_path / "ablation.json").read_text())
    assert [(row["protocol"], row["switches"]) for row in written] == [
        ("conditioned", []), ("dyadic", []), ("dyadic", ["audio"])
    ]  # fmt: skip
    assert "frames=4" in written[0]["numbers"]["PSNR"]["protocol"], "other settings go to score"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("score", "nowhere", "systems.a=.", "-o", "x"), "bench make"),
        (("score", "{bench}", "systems.a", "-o", "x"), "KEY=VALUE"),
        (("score", "{bench}", "-o", "x"), "systems.NAME=FOLDER"),
        (("score", "{bench}", "systems.a=.", "frames=4", "-o", "x"), "did you mean 'video_frames'?"),
        (("ablation", "{bench}", "rows.dyadic:noise,audio=.", "rows.dyadic:audio,noise=.", "-o", "x"), "two rows"),
        (("score", "{bench}", "systems.a=nowhere", "-o", "x"), "no folder"),
        (("score", "{bench}", "systems.a=.", "-o", "x", "size=big"), "HEIGHTxWIDTH"),
        (("score", "{bench}", "systems.a=.", "-o", "x", "i3d=none.pt"), "i3d_torchscript"),
        (("make", "{bench}", "clips=.", "-o", "x"), "clips=FOLDER belongs to"),
        (("ablation", "{bench}", "rows.dyadic:none=nowhere", "-o", "x"), "no folder"),
        (("report", "none.json", "-o", "x"), "no such file"),
        (("report", "{bench}/pairs.jsonl", "-o", "x"), "no results"),
        (("score", "{bench}", "systems.a=.", "systems.a=.", "-o", "x"), "systems.a is given twice"),
        (("make", "nowhere", "-o", "x"), "no such data folder"),
        (("make", "{bench}/pairs.jsonl", "clips=nowhere", "-o", "x"), "clips=FOLDER"),
        (("make", "{bench}", "-o", "x", "seconds=nan"), "seconds must be a number"),
        (("candidates", "{bench}"), "model=NAME"),
        (("candidates", "{bench}", "--rendered"), "not a rendered dyad"),
    ],
)
def test_mistakes_are_reported_in_a_sentence(bench, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*(word.format(bench=bench) for word in words))
    assert result.exit_code != 0
    assert message in " ".join(result.output.replace("│", " ").split()) + str(result.exception)
    assert "Traceback" not in result.output
