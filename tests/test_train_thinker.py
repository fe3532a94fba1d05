"""`train.py` with a thinker: its features are computed when clips are encoded, and the release names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.test_train import config, folder  # noqa: F401, the fixture of a data set
from tests.tiny_thinker import save_tiny_thinker
from vidchat.cli import train as train_script
from vidchat.conditions.thinker import ThinkerFeatures
from vidchat.generation.answer import Question, read_question
from vidchat.release import load_release
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.weights import TokenizerError


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    where = save_tiny_thinker(tmp_path_factory.mktemp("thinker"))
    return [
        "thinker=qwen2_5_omni_3b", f"thinker.name={where}", "thinker.dtype=float32", "thinker.min_pixels=3136",
        "thinker.max_pixels=9408", "condition.features=32",
    ]  # fmt: skip


def test_a_stage_with_a_thinker(folder: Path, thinker: list[str], tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    seen = []
    encode = Thinker.encode
    monkeypatch.setattr(Thinker, "encode", lambda self, media: seen.append(media) or encode(self, media))
    exported = train_script.train(config(folder, tmp_path / "one", "sft_dyadic", "condition.initiator=false", *thinker))
    assert len(seen) == 3, "every question once"
    release = load_release(exported)
    assert release.thinker is not None
    assert release.conditions == {"features": ThinkerFeatures(32)}
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    batch = read_question(release, Question(tmp_path / "b.png", initiator=folder / "initiator0.mp4"))
    assert batch.conditions["features"].mask.all()
    seen.clear()
    train_script.train(config(folder, tmp_path / "two", "sft_dyadic", "condition.initiator=false", *thinker))
    assert not seen, "read from then on"


def test_a_width_that_is_not_the_thinker_s_is_refused(folder: Path, thinker: list[str], tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(Exception, match="gives features of 32") as caught:
        train_script.train(config(folder, tmp_path, "sft_dyadic", *thinker, "condition.features=64"))
    assert isinstance(caught.value, TokenizerError)
