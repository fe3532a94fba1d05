"""Every part that a config names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate

from tests.tiny_thinker import tiny_tokenizer
from vidchat.shipped import CONFIGS
from vidchat.tokenizers.text import ByteTokenizer, HubTokenizer

FILES = sorted(CONFIGS.rglob("*.yaml"))
TARGET = re.compile(r"_target_: ([\w.]+)")


@pytest.mark.parametrize("target", sorted({name for file in FILES for name in TARGET.findall(file.read_text())}))
def test_a_target_can_be_imported(target: str) -> None:
    if target.startswith("lightning.pytorch.loggers"):
        pytest.importorskip("tensorboard")
    assert callable(get_object(target))


def test_text_is_bytes_or_the_tokenizer_of_qwen3(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    words = ["stage=pretrain_av", "data=folder", "data.root=x"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert type(instantiate(compose("train", words).text_tokenizer)) is ByteTokenizer
        chosen = compose("train", [*words, "text_tokenizer=qwen3"]).text_tokenizer
    assert chosen.name == "Qwen/Qwen3-0.6B"
    assert type(instantiate(chosen, name=str(tmp_path))) is HubTokenizer
