from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vidchat.bench.ablation import PUBLISHED, parse_row
from vidchat.playground.demo import table2
from vidchat.training.config_values import wrong_values

CONFIGS = Path(__file__).parents[3] / "configs"
ROWS = sorted(path.stem for path in (CONFIGS / "row").glob("*.yaml"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_what_its_name_says(name, tmp_path):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["+experiment=table2", f"row={name}"], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        plain = OmegaConf.to_container(config, resolve=False)
        assert config.output_dir == f"outputs/table2/{name}"
    place, _ = parse_row(f"{table2.place_of(plain)}={tmp_path}")
    assert name == f"{place.protocol}_{'_'.join(place.switches) or 'none'}"
    assert plain["stage"]["audio"] == ("audio" in place.switches)
    assert not list(wrong_values({"model": plain["model"]})), "noise may be null"


def test_all_published_rows_are_there_and_two_of_our_own():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        rows = [compose("train", ["+experiment=table2", f"row={name}"]) for name in ROWS]
    told = {table2.place_of(OmegaConf.to_container(row, resolve=False)) for row in rows}
    own = {"dyadic:audio,spatial,noise,fine", "dyadic:audio,spatial,noise,resample"}
    assert told >= own
    assert told - own == {f"{protocol}:{','.join(switches) or 'none'}" for protocol, switches in PUBLISHED}


def test_the_last_row_is_followed_by_answers_and_the_table(tmp_path, monkeypatch):
    """With commands recorded instead of run: the benchmark once, then the ablation over all releases."""
    for name in ("a", "b", "b.old1"):  # the last was set aside, and is no row
        (tmp_path / name / "release").mkdir(parents=True)
        (tmp_path / name / "release" / "config.yaml").touch()
    config = {"condition": {"initiator": True}, "model": {"depth": {}, "spatial": None, "noise": None}}
    commands = []
    monkeypatch.setattr(table2, "read_config", lambda folder: config)
    monkeypatch.setattr(table2.subprocess, "run", lambda words, check: commands.append(words))
    told = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "data": {"root": "data"}})
    table2.Table2(pairs=5).on_multirun_end(told)
    make, ablation = commands
    assert make[3:5] == ["bench", "make"]
    assert make[-1] == "limit=5"
    assert [word for word in ablation if word.startswith("rows.")] == [
        f"rows.dyadic:audio={tmp_path / name / 'release'}" for name in ("a", "b")
    ]
    (command,) = [word for word in ablation if word.startswith("generate=")]
    assert "checkpoint={release}" in command


def test_no_trained_row_is_told(tmp_path, caplog):
    table2.Table2(pairs=5).on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "no table" in caplog.text
