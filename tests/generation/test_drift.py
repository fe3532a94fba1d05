from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from vidchat.data.media.read import write_clip

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "drift.py"


@pytest.fixture(scope="module")
def drift():
    spec = importlib.util.spec_from_file_location("drift", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two dialogues with two responders."""
    lines = []
    for index in range(2):
        names = [f"{role}{index}.mp4" for role in "ab"]
        for name in names:
            frames = torch.randint(256, (13, 3, 16, 16), dtype=torch.uint8)
            write_clip(tmp_path / name, frames, 0.1 * torch.randn(13 * 640), 25, 16000)
        turns = [
            {"role": "initiator", "speaker": "a", "clip": names[0]},
            {"role": "responder", "speaker": f"b{index}", "clip": names[1], "text": "hello"},
        ]
        lines.append(json.dumps({"id": f"d{index}", "split": "test", "turns": turns}))
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_two_releases_make_a_table_and_a_plot(drift, release_folder, data, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--release", f"noise={release_folder}", "--release", f"other={release_folder}", "--data", str(data)]
    arguments += ["--chunks", "5", "--window", "2", "--levels", "0.2", "--output", str(tmp_path / "out" / "drift")]
    drift.main(arguments)
    results = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert set(results["curves"]) == {"noise, level 0.2", "other, level 0.2", "truth"}
    assert results["curves"]["noise, level 0.2"] == results["curves"]["other, level 0.2"], "one release, one seed"
    assert len(results["curves"]["truth"]["step"]) == 3
    assert len(results["curves"]["noise, level 0.2"]["step"]) == 5
    assert (tmp_path / "out" / "drift.png").stat().st_size > 1000
    assert (tmp_path / "out" / "drift.md").read_text() in capsys.readouterr().out


def test_the_curves_show_drift(drift):
    """Latents whose spread falls, whose mean rises and that stop moving, and frames that become another speaker's."""
    start = torch.randn(4, 6, 6)
    own, other = torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 16), 200, dtype=torch.uint8)
    chunks = [
        ((other.float() * t / 9).to(torch.uint8).expand(4, -1, -1, -1), start * (1 - t / 10) + t / 10)
        for t in range(10)
    ]
    curves = drift.average([drift.measure(iter(chunks), start, "own", {"own": own, "other": other})])
    first, last = zip(*drift.summary(curves, 2).values(), strict=True)
    psnr, identity, mean, std, step = range(5)
    assert last[psnr] < first[psnr]
    assert (first[identity], last[identity]) == (1.0, 0.0)
    assert last[mean] > first[mean]
    assert last[std] < 0.3 < first[std]
    assert curves["step"][0] == 0 < first[step]
