"""The examples do what they say, as files and as the notebook."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from vidchat.bench.spoken_distance import cepstra, nearest_sentence
from vidchat.data.media.read import read_clip
from vidchat.dialogue import Clip
from vidchat.playground.people.script import candidate_answers
from vidchat.playground.people.speaker_voice import Voice, speak

NOTEBOOK = Path(__file__).parents[1] / "examples" / "conversation.ipynb"


def test_the_notebook_runs_and_the_model_that_ships_gives_the_right_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[Path] = []
    display = types.ModuleType("IPython.display")
    display.Video = lambda path, **_: shown.append(Path(path).resolve())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    exec("\n".join(code), {"__name__": "__main__"})
    assert 8 <= capsys.readouterr().out.count(" s of answer after ") <= 16
    assert shown == [(tmp_path / name).resolve() for name in ("answer.mp4", "film.mp4")]
    media = read_clip(Clip(shown[0], "boy"), fps=25, size=(96, 96), sample_rate=16000)
    voice = Voice("f2", 95, 48, 186)  # the boy's
    spoken = {text: [cepstra(speak(text, voice, 16000).waveform, 16000)] for text in candidate_answers()}
    assert nearest_sentence(media.waveform.numpy(), spoken, 16000) == "oh yes i love snow"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
