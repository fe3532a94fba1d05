"""Releases of format 1 are read wherever code has moved; those of format 2 hold names only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vidchat.registry import FormatError, UnknownName, look_up, name_of, to_names
from vidchat.release.format import FORMAT_1, from_format_1

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = ("model", "video_vae", "audio_codec")
ENTRIES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
UNTRAINED = ("stacked",)
"""Configs from which a tokenizer is trained, not released."""


@pytest.mark.parametrize("name", sorted(set(FORMAT_1.values())))
def test_every_path_of_format_1_stands_for_a_name_that_is_there(name):
    assert name_of(look_up(name)) == name


@pytest.mark.parametrize(("group", "entry"), [pair for pair in ENTRIES if pair[1] not in UNTRAINED])
def test_what_the_configs_build_has_a_name(group, entry):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", ["stage=sft_dyadic", "data.root=x", f"{group}={entry}"])
    node = to_names(OmegaConf.to_container(config[group], resolve=True))
    assert "_target_" not in str(node)
    assert look_up(node["type"])


def test_a_part_without_a_name_cannot_be_released():
    with pytest.raises(UnknownName, match=r"pathlib\.Path has no name"):
        to_names({"a": [{"_target_": "pathlib.Path"}]})
    with pytest.raises(FormatError, match="_partial_"):
        to_names({"_target_": "vidchat.model.transformer.Shape", "_partial_": True})


def test_format_1_is_read_by_its_own_table_and_nothing_else():
    shape = {"_target_": "vidchat.model.transformer.Shape", "width": 8, "_recursive_": False}
    node = {"_target_": "vidchat.model.responder.Responder", "backbone": shape, "layers": [shape], "spatial": None}
    shape = {"type": "transformer", "width": 8}
    assert from_format_1(node) == {"type": "responder", "backbone": shape, "layers": [shape], "spatial": None}
    for target in ("os.system", "vidchat.release.load_release", "vidchat.tokenizers.stacked.StackedVAE"):
        with pytest.raises(FormatError, match="do not use it"):
            from_format_1({"model": {"_target_": target}})
