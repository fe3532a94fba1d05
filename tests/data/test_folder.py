from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidchat.data.folder import FolderError, read_dialogues, read_folder


def turns(question: str = "a.mp4", answer: str = "b.mp4", **more: Any) -> list[dict[str, Any]]:
    return [
        {"role": "initiator", "speaker": "ann", "clip": question, "text": "do you like tea"},
        {"role": "responder", "speaker": "bob", "clip": answer, **more},
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"media")
    (tmp_path / "secret.mp4").write_bytes(b"outside")
    return folder


def write(root: Path, *entries: Any) -> None:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (root / "dialogues.jsonl").write_text("\n".join(lines) + "\n\n")


def test_every_field_is_read(root: Path) -> None:
    full = turns(start=0.5, end=2, scores={"dover": 7, "motion": None}, truth={"mouth": [0.1]}, text="oh yes")
    full[1] |= {"at": 3, "words": [["oh", 0, 0.4], ["yes", 0.5, 1]], "caption": "A man nods."}
    write(root, {"id": "d1", "split": "test", "branch": "dialogue", "tier": "pretrain", "turns": full})
    (dialogue,) = read_dialogues(root)
    assert (dialogue.id, dialogue.split, dialogue.tier) == ("d1", "test", "pretrain")
    answer, question = dialogue.answer, dialogue.question
    assert question is not None
    assert (question.path, question.speaker, question.text) == (root / "a.mp4", "ann", "do you like tea")
    assert (answer.start, answer.end, answer.scores, answer.truth) == (0.5, 2.0, {"dover": 7.0}, {"mouth": [0.1]})
    assert [turn.start for turn in dialogue.turns] == [None, 3.0]
    assert (answer.text_between(0.4, 1), answer.caption) == ("yes", "A man nods.")
    assert (question.words, question.caption) == ((), None)


def test_in_the_listening_branch_turns_without_times_start_together(root: Path) -> None:
    for branch, starts in (("listening", [0.0, 0.0]), ("dialogue", [None, None])):
        write(root, {"id": "d1", "branch": branch, "turns": turns()})
        assert [turn.start for turn in read_dialogues(root)[0].turns] == starts
    write(root, {"id": "d1", "branch": "listening", "turns": turns(at=0.4)})
    assert [turn.start for turn in read_dialogues(root)[0].turns] == [0.0, 0.4]


def test_a_json_list_reads_the_same(root: Path) -> None:
    entries = [{"id": "d1", "turns": turns()}, {"id": "d2", "turns": turns("b.mp4", "a.mp4")}]
    write(root, *entries)
    lines = read_dialogues(root)
    (root / "dialogues.jsonl").unlink()
    (root / "dialogues.json").write_text(json.dumps(entries))
    assert read_dialogues(root) == lines
    assert [d.split for d in lines] == ["train", "train"]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{not json", "Expecting"),
        ('{"id": "a", "turns": [{},', "as JSON on one line"),
        ("[1, 2]", "'id'"),
        ({"id": "x", "turns": turns("missing.mp4")}, "missing.mp4"),
        ({"id": "x", "turns": turns("../secret.mp4")}, "outside"),
        ({"id": "x", "turns": turns("sub/../../secret.mp4")}, "outside"),
        ({"id": "x", "turns": turns("/etc/hosts")}, "outside"),
        ({"id": "x", "turns": turns("n" * 400)}, "n"),
        ({"id": "x", "turns": turns(start=2, end=1)}, "end"),
        ({"id": "x", "turns": turns(start=float("nan"))}, "NaN"),
        ({"id": "x", "turns": turns(start="1")}, "seconds"),
        ({"id": "x", "turns": turns(start=10**400)}, "'start' must be seconds, not a whole number of 1329 bits"),
        ({"id": "x", "turns": turns(end=10**400)}, "'end' must be seconds"),
        ({"id": "x", "turns": turns(scores={"dover": 10**400})}, "the score 'dover' must be a number"),
        ({"id": "x", "turns": turns(scores={"dover": float("inf")})}, "Infinity"),
        ('{"id": "x", "turns": [{"role": "responder", "speaker": "a", "clip": "a.mp4", "start": 1e999}]}', "seconds"),
        ({"id": "x", "turns": turns(truth={"mouth": [float("-inf")]})}, "Infinity"),
        (f'{{"id": {"9" * 5000}, "turns": []}}', "limit"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ({"id": ["x"], "turns": turns()}, "'id' must be a name"),
        ({"id": None, "turns": turns()}, "'id' must be a name"),
        ({"id": "x", "turns": turns(speaker={"name": "bob"})}, "'speaker' must be a name"),
        ({"id": "x", "turns": turns(speaker=True)}, "'speaker' must be a name"),
        ({"id": "x\ud800", "turns": turns()}, "half of a character"),
        ({"id": "x", "turns": turns("\ud800.mp4")}, "half of a character"),
        ({"id": "x", "turns": turns(text="\ud800")}, "half of a character"),
        ({"id": "x", "turns": turns(text=3)}, "'text' must be a string"),
        ({"id": "x", "turns": turns(caption=["a man"])}, "'caption' must be a string"),
        ({"id": "x", "turns": turns(at=-1)}, "'at' must be seconds on the dialogue's clock, from 0 to 1000000, not -1"),
        ({"id": "x", "turns": turns(at=1e19)}, "'at' must be seconds on the dialogue's clock"),
        ({"id": "x", "turns": turns(at="2")}, "'at' must be seconds"),
        ({"id": "x", "turns": turns(at=10**400)}, "'at' must be seconds"),
        ({"id": "x", "turns": turns(words="oh yes")}, "'words' must be a list of [text, start, end]"),
        ({"id": "x", "turns": turns(words=[["oh", 0]])}, "not of ['oh', 0]"),
        ({"id": "x", "turns": turns(words=[[1, 0, 1]])}, "not of [1, 0, 1]"),
        ({"id": "x", "turns": turns(words=[["oh", 0, None]])}, "in seconds from the clip's start, not None"),
        ({"id": "x", "turns": turns(words=[["oh", 2, 1]])}, "ends before it starts"),
        ({"id": "x", "turns": turns(words=[["\ud800", 0, 1]])}, "half of a character"),
        ({"id": "x", "turns": turns(scores={"dover": "good"})}, "good"),
        ({"id": "x", "split": "training", "turns": turns()}, "train, val, test"),
        ({"id": "x", "turns": turns()[:1]}, "responder"),
        ({"id": "x", "turns": [{"role": "speaker", "speaker": "a", "clip": "a.mp4"}]}, "initiator"),
        ({"id": "good", "turns": turns()}, "used before"),
    ],
)
def test_a_bad_line_is_skipped_counted_and_named(root: Path, bad: Any, why: str) -> None:
    write(root, {"id": "good", "turns": turns()}, bad, {"id": "good2", "turns": turns()})
    dialogues, report = read_folder(root)
    assert [d.id for d in dialogues] == ["good", "good2"]
    assert report.read == 2
    ((where, reason),) = report.skipped
    assert where == "dialogues.jsonl line 2"
    assert why in reason
    assert "1 skipped" in str(report)
    assert where in str(report)


def test_a_byte_order_mark_is_skipped(root: Path) -> None:
    lines = [{"id": name, "turns": turns()} for name in ("d1", "d2")]
    for name, text in (("dialogues.jsonl", "\n".join(map(json.dumps, lines))), ("dialogues.json", json.dumps(lines))):
        (root / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        dialogues, report = read_folder(root)
        assert [d.id for d in dialogues] == ["d1", "d2"]
        assert not report.skipped
        (root / name).unlink()


def test_unknown_speakers_of_different_spans_differ(root: Path) -> None:
    write(
        root,
        {"id": "d1", "turns": turns(speaker=None, start=0, end=1)},
        {"id": "d2", "turns": turns(speaker="", start=1, end=2)},
        {"id": "d3", "turns": turns(speaker=7)},
        {"id": "d4", "turns": turns(speaker=None, start=0, end=1)},
    )
    first, second, named, again = (dialogue.answer.speaker for dialogue in read_dialogues(root))
    assert first == again  # the same span of the same file
    assert len({first, second, named}) == 3
    assert named == "7"
    assert not {"None", ""} & {first, second, named}


def test_a_deeply_nested_json_file_is_refused(root: Path) -> None:
    (root / "dialogues.json").write_text("[" * 100_000)
    with pytest.raises(FolderError, match="nested too deeply"):
        read_folder(root)


def test_a_bad_row_of_a_table_is_skipped(root: Path) -> None:
    rows = [
        {"id": "d1", "turns": json.dumps(turns())},
        {"id": "d2", "turns": "[{not json"},
        {"id": "d3", "turns": "[" * 100_000},
        {"id": "d4", "turns": json.dumps(turns())},
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "dialogues.parquet")
    dialogues, report = read_folder(root)
    assert [d.id for d in dialogues] == ["d1", "d4"]
    assert [where for where, _ in report.skipped] == ["dialogues.parquet row 2", "dialogues.parquet row 3"]


def test_a_unicode_line_separator_stays_in_the_text(root: Path) -> None:
    entry = {"id": "d1", "turns": turns(text="yes\u2028no")}
    (root / "dialogues.jsonl").write_text(json.dumps(entry, ensure_ascii=False), encoding="utf-8")
    assert read_dialogues(root)[0].answer.text == "yes\u2028no"


def test_a_link_in_the_folder_may_point_outside(root: Path) -> None:
    (root / "link.mp4").symlink_to(root.parent / "secret.mp4")
    write(root, {"id": "d1", "turns": turns("link.mp4")})
    assert read_dialogues(root)[0].turns[0].clip.path == root / "link.mp4"


def test_errors_of_other_folders_show_an_example(root: Path) -> None:
    with pytest.raises(FolderError, match="no such data folder"):
        read_dialogues(root / "nowhere")
    with pytest.raises(FolderError, match=r'dialogues\.jsonl.*"turns"'):
        read_dialogues(root)
    write(root, {"id": "x", "turns": turns("missing.mp4")})
    with pytest.raises(FolderError, match=r"no usable dialogue.*line 1.*missing\.mp4"):
        read_dialogues(root)
    (root / "dialogues.jsonl").unlink()
    (root / "dialogues.json").write_text('{"id": 1}')
    with pytest.raises(FolderError, match="list"):
        read_dialogues(root)


def test_the_real_clips_make_a_folder(real_clips: Path, tmp_path: Path) -> None:
    files = sorted(real_clips.glob("*.mp4"))
    for file in files:
        (tmp_path / file.name).symlink_to(file)
    pairs = itertools.pairwise(files)
    write(tmp_path, *({"id": a.stem, "turns": turns(a.name, b.name)} for a, b in pairs))
    dialogues, report = read_folder(tmp_path)
    assert len(dialogues) == len(files) - 1
    assert not report.skipped


@pytest.mark.parametrize("media", [True, False])
def test_a_null_character_in_a_path_skips_that_line_alone(tmp_path: Path, media: bool) -> None:
    """Also where tokens may replace the files, which are then not looked up."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    turns = [[{"role": "responder", "speaker": "b", "clip": name}] for name in ("a\0b.mp4", "a.mp4")]
    lines = [json.dumps({"id": f"d{k}", "turns": turn}) for k, turn in enumerate(turns)]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines))
    table, report = read_folder(tmp_path, media=media)
    assert ([dialogue.id for dialogue in table], len(report.skipped)) == (["d1"], 1)
    assert "null character" in report.skipped[0][1]
