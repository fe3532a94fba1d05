"""What ships is found from anywhere, and what stands where the user is comes first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from vidchat.cli.data_encode import _for_hydra
from vidchat.release import load_release
from vidchat.shipped import CONFIGS, find


def test_what_ships_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    release = load_release("checkpoints/demo")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["stage=pretrain_av"])
    for name in ("video_vae", "audio_codec"):
        assert instantiate(config[name]).fingerprint() == getattr(release, name).fingerprint()
    assert _for_hydra("video_vae=checkpoints/demo/video_vae")[0] == "video_vae=demo", "a folder, to data encode"


def test_a_path_of_the_user_s_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = find("checkpoints/demo")
    assert (shipped / "config.yaml").is_file()
    for name in ("checkpoints/none", "configs/train.yaml", "checkpoints/../__init__.py", str(tmp_path / "checkpoints")):
        assert find(name) == Path(name), "nothing ships by that name"
    (tmp_path / "checkpoints" / "demo").mkdir(parents=True)
    assert find("checkpoints/demo") == Path("checkpoints/demo")


def test_no_file_of_vidchat_climbs_out_of_it() -> None:
    for path in CONFIGS.parent.rglob("*.py"):
        assert "parents[" not in path.read_text(), f"{path}: an installed package has nothing above it"
