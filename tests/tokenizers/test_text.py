"""A text tokenizer of transformers, here a byte-level one in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny_thinker import tiny_tokenizer
from vidchat.tokenizers.text import HubTokenizer
from vidchat.tokenizers.weights import TokenizerError


def test_a_copied_folder_is_the_same_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, other = HubTokenizer(str(tmp_path / "a")), HubTokenizer(str(tmp_path / "b"))
    assert first.encode("héllo") == other.encode("héllo")
    assert max(first.encode("héllo")) < first.vocabulary
    assert first.fingerprint() == other.fingerprint()


def test_other_preprocessing_has_another_fingerprint(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    file = tmp_path / "b" / "tokenizer.json"
    file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))
    assert HubTokenizer(str(tmp_path / "a")).fingerprint() != HubTokenizer(str(tmp_path / "b")).fingerprint()


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="holds no text tokenizer"):
        HubTokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')  # transformers makes an empty one for it
    with pytest.raises(TokenizerError, match="holds no text tokenizer"):
        HubTokenizer(str(tmp_path))
