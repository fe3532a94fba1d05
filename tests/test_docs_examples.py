"""The code of the tutorials does what they say, as it stands on the page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vidchat.playground.people.render import RenderSettings, render

ROOT = Path(__file__).parents[1]
SMALL = [
    "data=folder", "data.size=[32,32]", "data.batch_size=1", "data.max_chunks=2", "data.num_workers=0", "stage.steps=2",
    "model.backbone.layers=2", "model.spatial.layers=2", "model.depth.layers=1", "logger=none", "callbacks={}",
]  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.S)


@pytest.fixture(scope="module")
def dyads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dyads")
    render(folder, RenderSettings(dialogues=4, seed=0, height=32, width=32), workers=1)
    return folder


def run(folder: Path, *words: str | Path) -> None:
    done = subprocess.run(list(map(str, words)), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tokenizer_of_one_s_own_trains_is_released_and_answers(
    dyads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/own-tokenizer.md: a class, a YAML file, and two commands."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    code, save = blocks("own-tokenizer.md", "python")
    (config,) = blocks("own-tokenizer.md", "yaml")
    (tmp_path / "mylab.py").write_text(code)
    (tmp_path / "conf" / "video_vae").mkdir(parents=True)
    (tmp_path / "conf" / "video_vae" / "block_mean.yaml").write_text(config)
    run(tmp_path, sys.executable, "-c", save.replace("96, 96", "32, 32"))
    vidchat = (sys.executable, "-m", "vidchat")
    words = ["--config-dir", "conf", "stage=sft_dyadic", "video_vae=block_mean", f"data.root={dyads}", *SMALL]
    run(tmp_path, *vidchat, "train", *words)
    clips = sorted((dyads / "clips").glob("*.mp4"))
    places = [f"initiator={clips[0]}", f"reference={clips[1]}", "checkpoint=outputs/sft_dyadic/release"]
    run(tmp_path, *vidchat, "infer", *places, "trust=[mylab]", "output=answer.mp4", "seconds=0.3")
    assert (tmp_path / "answer.mp4").stat().st_size > 1000
