"""Releases of another format are refused; those of the present one hold names only."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vidchat.registry import FormatError, UnknownName, look_up, to_names
from vidchat.release.format import FORMAT, format_problem

CONFIGS = Path(__file__).parents[2] / "configs"
GROUPS = ("model", "video_vae", "audio_codec")
ENTRIES = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
UNTRAINED = ("stacked",)
"""Configs from which a tokenizer is trained, not released."""


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


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        (FORMAT, None),
        *((old, "vidchat 0.1.0 (git tag v0.1.0) is the last version that runs it") for old in range(1, FORMAT)),
        (FORMAT + 1, f"is of format '{FORMAT + 1}'; this vidchat reads format {FORMAT}: update it"),
        (True, "is of format 'True'"),
        (0, "is of format '0'"),
        (None, "does not state its format"),
    ],
)
def test_a_format_that_is_not_the_present_one_is_refused_in_a_sentence(stated, problem):
    said = format_problem("some/release", stated)
    assert said is problem is None or (said.startswith("some/release ") and problem in said and "\n" not in said)
