"""Every page is valid HTML, and shows data as text only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jinja2 import UndefinedError

from tests.bench.test_comparison import HARD, result_of, system
from tests.data.folders import make_folder
from tests.reports.checked import checked
from vidchat.bench.report_page import write_page as write_bench
from vidchat.bench.results import PairScore
from vidchat.data.show import Choice, show
from vidchat.playground.demo.measure import Scores
from vidchat.playground.demo.page import Caption, Section, Shown, draw_sheet
from vidchat.playground.demo.page import write_page as write_demo
from vidchat.playground.people.script import Case
from vidchat.reports.page import render
from vidchat.reports.sheet import NARROWEST, Panel, contact_sheet, strip

HOSTILE = """</script></style><script>alert(1)</script><b onclick='x' title="y">&amp; {{ 7 * 7 }} {% raw %} --> ' " `"""


def bench_page(folder: Path, words: str) -> str:
    odd = system(words, HARD, dimension=words, string=words)
    numbers = [replace(odd.numbers[0], reason=words, doubt=words)]
    bad = PairScore({}, (words,), words, 0.0, {"path": words, "start": 0, "end": None})
    truth = system("truth", HARD + 1, dimension=words, string=words)
    result = result_of(truth, replace(odd, numbers=numbers, scores={**odd.scores, "p0": bad}), date=words)
    pairs = [{**pair, "question": words, "answer": words, "reference": words} for pair in result.pairs]
    result = replace(result, protocol=words, pairs=pairs, rule=words, warnings=[words])
    return write_bench([result], folder / "index.html", 0).read_text()


def demo_page(folder: Path, words: str) -> str:
    folder.mkdir()
    case = Case("tea", "happy")
    right = {1: (0.5, 2), 2: (1.0, 1)}
    scores = {words: Scores(0.5, 0.6, 0.1, right, 0.5, 0.5, 0.5, 0.9, 0.3, 0.9, ((case,), (case, case)), ((0.5,),))}
    films = {words: folder / f"{words.replace('/', ' ')}.mp4"}
    shown = Shown(words, films, {words: [Caption(words, True), Caption(words, False), Caption(words)]})
    return write_demo(folder, [Section(words, words, [shown])], scores, [words]).read_text()


def data_page(folder: Path, words: str) -> str:
    root = make_folder(folder / "data", ["train"])
    entry = json.loads((root / "dialogues.jsonl").read_text())
    for turn in entry["turns"]:
        turn |= {"text": words, "speaker": words}
    (root / "dialogues.jsonl").write_text(json.dumps({**entry, "id": words}))
    show(root, folder / "index.html", Choice(), 1)
    return (folder / "index.html").read_text()


@pytest.mark.parametrize("make", [bench_page, demo_page, data_page])
def test_hostile_text_is_shown_and_changes_no_element(make, tmp_path):
    """The page has the same elements and attributes as one with harmless text, and contains the text unchanged."""
    hostile, harmless = (checked(make(tmp_path / name, words)) for name, words in (("a", HOSTILE), ("b", "words")))
    assert HOSTILE in "".join(hostile.texts)
    structures = [[(tag, sorted(given)) for tag, given in parsed.tags] for parsed in (hostile, harmless)]
    assert structures[0] == structures[1]
    assert hostile.values("onclick") == harmless.values("onclick")


def test_a_page_without_scores_has_no_table_and_no_curves(tmp_path):
    shown = Shown("Q", {"truth": tmp_path / "50% #1?.mp4"})
    page = write_demo(tmp_path, [Section("Talk", "", [shown])], {}, ["note"])
    parsed = checked(page.read_text())
    assert not {"table", "img"} & {tag for tag, _ in parsed.tags}
    assert parsed.values("src") == ["50%25%20%231%3F.mp4"], "the file name, escaped as a URL"


def test_a_missing_value_of_a_template_is_an_error():
    with pytest.raises(UndefinedError, match="dialogues"):
        render("dialogues.html", title="x")


def test_a_strip_shows_the_first_and_the_last_frame_and_a_sheet_fits_all_panels():
    frames = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 3, 4, 6)
    shown = strip(frames, 3)
    assert shown.shape == (4, 18, 3)
    assert shown[0, ::6, 0].tolist() == [0, 4, 8]
    wide = strip(frames.repeat_interleave(100, dim=3), 3)
    sheet = contact_sheet([[Panel("a heading " * 50_000)], [Panel("left", wide), Panel("right", shown)]])
    assert sheet.width > NARROWEST
    assert sheet.getpixel((sheet.width - 18, sheet.height - 18)) == (8, 8, 8), "the last frame of the last panel"


def test_the_sheet_of_the_demo_is_drawn(tmp_path):
    root = make_folder(tmp_path / "data", ["train", "train"])
    shown = [Shown("Q", {"shipped": root / f"q{k}.mp4", "truth": root / f"a{k}.mp4"}) for k in (0, 1)]
    draw_sheet(shown, tmp_path / "one.png", ["shipped", "truth"])
    assert (tmp_path / "one.png").stat().st_size > 1000
