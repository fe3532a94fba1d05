from __future__ import annotations

from pathlib import Path

import pytest

from vidchat.data.folder import read_dialogues
from vidchat.data.media.read import read_clip
from vidchat.playground.people.spoken_sentences import TIMBRES, UNHEARD, SpeechSettings, render_speech

pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed (extra: demo)")


def test_sentences_become_a_folder_data_set_with_audible_speech(tmp_path: Path) -> None:
    render_speech(tmp_path, SpeechSettings(sentences=6))
    dialogues = read_dialogues(tmp_path)
    assert [dialogue.split for dialogue in dialogues] == ["test", "val", "train", "train", "train", "train"]
    for dialogue in dialogues:
        media = read_clip(dialogue.answer, fps=25, size=(16, 16), sample_rate=16000)
        assert len(media.waveform) == len(media.frames) * 640
        assert media.waveform.abs().max() > 0.1
        assert media.waveform[:1200].abs().max() < 0.02  # silence at the start
    assert len({dialogue.answer.text for dialogue in dialogues}) == 6


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        render_speech(tmp_path / name, SpeechSettings(sentences=3, seed=5))
    for file in sorted((tmp_path / "a").rglob("*.*")):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_the_test_split_has_timbres_of_its_own(tmp_path: Path) -> None:
    assert not set(TIMBRES) & set(UNHEARD)
    render_speech(tmp_path, SpeechSettings(sentences=3))
    test, _, _ = read_dialogues(tmp_path)
    assert test.answer.speaker in UNHEARD
