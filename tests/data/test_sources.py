from __future__ import annotations

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from folders import film, make_folder
from typer.testing import CliRunner

from vidchat.cli import app
from vidchat.data.folder import FolderError, read_folder
from vidchat.data.manifest.dialogues import DeriveSettings, write_dialogues
from vidchat.data.manifest.seamless import ingest_seamless
from vidchat.data.manifest.sources import ingest_folder
from vidchat.data.manifest.speakervid.annotation_folder import LayoutError
from vidchat.data.manifest.speakervid.ingest import ingest_speakervid
from vidchat.dialogue import Dialogue


def fields(dialogue: Dialogue) -> tuple[Any, ...]:
    turns = [replace(t, clip=replace(t.clip, path=t.clip.path.resolve(), end=None)) for t in dialogue.turns]
    return dialogue.id, dialogue.branch, dialogue.tier, dialogue.split, turns


def test_a_folder_data_set_keeps_every_field_through_the_manifest(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own", ["train", "val", "test"], branch="dialogue", tier="sft")
    lines = (root / "dialogues.jsonl").read_text().splitlines()
    entry = json.loads(lines[0])
    entry["turns"][1] |= {"truth": {"mouth": [0.5]}, "scores": {"dover": 0.5, "charm": 2}, "speaker": "only"}
    entry["turns"][1] |= {"at": 0.48, "words": [["oh", 0.1, 0.2], ["yes", 0.3, 0.5]], "caption": "She nods."}
    entry["id"] = "a/../b ü"
    (root / "dialogues.jsonl").write_text("\n".join([json.dumps(entry), *lines[1:], "{broken"]))
    report = ingest_folder(root, tmp_path / "data" / "clips.parquet")
    assert report["clips"] == 6
    assert len((tmp_path / "data" / "clips.damaged.jsonl").read_text().splitlines()) == 1
    settings = DeriveSettings(branches=("dialogue",))
    write_dialogues(tmp_path / "data" / "clips.parquet", tmp_path / "data", settings, media=root)
    assert sorted(map(fields, read_folder(tmp_path / "data")[0])) == sorted(map(fields, read_folder(root)[0]))


def test_a_table_of_dialogues(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own", ["train"])
    (root / "dialogues.jsonl").unlink()
    (root / "dialogues.csv").write_text(
        "dialogue,turn,role,speaker,clip,text,start,end,at,caption,dover\n"
        'x,1,responder,bob,a0.mp4,"yes, please",0.2,0.6,0.5,He nods.,0.7\n'
        "x,0,initiator,ann,q0.mp4,tea?,,,,,\n"
        "y,0,responder,ann,nowhere.mp4,,,,,,\n"
        "z,0,responder,ann,q0.mp4,,soon,,,,\n"
    )
    ingest_folder(root, tmp_path / "clips.parquet")
    first, second = pq.read_table(tmp_path / "clips.parquet").to_pylist()
    assert (first["role"], second["role"], second["text"]) == ("initiator", "responder", "yes, please")
    assert (second["start_s"], second["end_s"], second["dover"], second["words"]) == (0.2, 0.6, 0.7, 2)
    assert (first["at_s"], second["at_s"], second["caption"]) == (None, 0.5, "He nods.")
    assert first["duration_s"] == pytest.approx(0.84, abs=0.05)
    assert len((tmp_path / "clips.damaged.jsonl").read_text().splitlines()) == 2


def test_clips_alone_are_single(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own", ["train", "train"])
    (root / "dialogues.jsonl").unlink()
    (root / "broken.mp4").write_bytes(b"no media")
    assert ingest_folder(root, tmp_path / "clips.parquet")["clips"] == 4
    summary = write_dialogues(tmp_path / "clips.parquet", tmp_path / "data", DeriveSettings(), media=root)
    assert sum(summary.counts.values()) == 4
    with pytest.raises(FolderError):
        ingest_folder(tmp_path / "nowhere", tmp_path / "x.parquet")


def _spread(start: float, end: float, words: list[str]) -> list[dict[str, Any]]:
    each = (end - start) / len(words)
    return [{"word": w, "start": start + k * each, "end": start + (k + 1) * each} for k, w in enumerate(words)]


def person(name: str, segments: list[tuple[float, float, str]]) -> tuple[str, bytes]:
    transcript = [
        {"start": s, "end": e, "transcript": words, "words": _spread(s, e, words.split())} for s, e, words in segments
    ]
    vad = [{"start": s, "end": e} for s, e, _ in segments]
    return name, json.dumps({"id": name, "metadata:transcript": transcript, "metadata:vad": vad}).encode()


ANN = person("V00_S0001_I00000002_P0007A", [(0, 2, "do you"), (2.2, 4, "like tea"), (9, 10.5, "good")])
BOB = person("V00_S0001_I00000002_P0008", [(4.5, 7, "oh yes"), (9.2, 10.4, "well")])
EVE = person("V00_S0002_I00000009_P0007A", [(0, 3, "again me")])


def seamless(root: Path, *people: tuple[str, bytes], kind: str = "train") -> None:
    folder = root / "improvised" / kind / "0000"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "0000.tar", "w") as tar:
        for name, data in people:
            for suffix, content in ((".json", data), (".mp4", bytes(70_000)), (".npz", bytes(10))):
                info = tarfile.TarInfo(f"{name}{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_seamless_interaction(tmp_path: Path) -> None:
    seamless(tmp_path / "s", ANN, BOB, ("V00_S0001_I00000002_P0099", b"{"), ("unknown", b"{}"))
    seamless(tmp_path / "s", EVE, kind="dev")
    output = tmp_path / "data" / "clips.parquet"
    report = ingest_seamless(tmp_path / "s", output, workers=1)
    rows = pq.read_table(output).to_pylist()
    spoken = [row for row in rows if row["listens"] is False]
    assert [(row["voice"], row["text"], row["start_s"], row["end_s"]) for row in spoken] == [
        ("A", "do you like tea", 0, 4),
        ("B", "oh yes", 4.5, 7),
        ("A", "good", 9, 10.5),
        ("B", "well", 9.2, 10.4),
        ("A", "again me", 0, 3),
    ]
    assert [(row["speaker"], row["start_s"]) for row in rows if row["listens"]] == [("P0008", 0), ("P0007A", 4.5)]
    assert rows[0]["media"] == "improvised/train/0000/0000/V00_S0001_I00000002_P0007A.mp4"
    assert sum(report["left_out"].values()) == 2
    summary = write_dialogues(output, tmp_path / "data", DeriveSettings())
    lines = [json.loads(line) for line in (tmp_path / "data" / "dialogues.jsonl").read_text().splitlines()]
    pairs = [line for line in lines if line["branch"] == "dialogue"]
    assert [[t.get("text") for t in line["turns"]] for line in pairs] == [
        ["do you like tea", "oh yes"],
        ["oh yes", "good"],
    ]
    assert [turn["at"] for turn in pairs[0]["turns"]] == [0.0, 4.5], "the pause before the answer is kept"
    assert pairs[0]["turns"][0]["words"][2:] == [["like", 2.2, 3.1], ["tea", 3.1, 4.0]]
    assert pairs[0]["turns"][1]["words"] == [["oh", 0.0, 1.25], ["yes", 1.25, 2.5]], "in seconds of the clip"
    listening = [line for line in lines if line["branch"] == "listening"]
    assert all(turn["at"] == 0.0 for line in listening for turn in line["turns"])
    assert [[t["speaker"] for t in line["turns"]] for line in listening] == [["P0007A", "P0008"], ["P0008", "P0007A"]]
    recorded = [line for line in lines if line["id"].startswith("recorded/")]
    assert [[t["speaker"] for t in line["turns"]] for line in recorded] == [["P0008", "P0007A"], ["P0007A", "P0008"]]
    for line in recorded:
        assert (line["branch"], [t["role"] for t in line["turns"]]) == ("multi_turn", ["initiator", "responder"])
        assert all((t["at"], t["start"], t["end"]) == (0.0, 0.0, 10.5) for t in line["turns"]), "as recorded"
    assert recorded[1]["turns"][1]["text"] == "oh yes well"
    assert recorded[1]["turns"][1]["words"][2] == ["well", 9.2, 10.4]
    assert not [line for line in lines if line["branch"] == "single" and "recorded" in line["id"]]
    assert {line["split"] for line in lines} == {"val"}, "one person joins both conversations, and one of them is val"
    assert summary.torn == 1
    before = output.read_bytes()
    ingest_seamless(tmp_path / "s", output, workers=1)
    assert output.read_bytes() == before
    with pytest.raises(LayoutError):
        ingest_seamless(tmp_path / "data", tmp_path / "x.parquet", workers=1)


def run(*arguments: Any, fails: bool = False) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def test_the_commands_one_after_another(tmp_path: Path) -> None:
    """Ingests, cuts, derives, counts and shows a folder of the user's own clips."""
    root, data = make_folder(tmp_path / "own", ["train", "train", "val"], tier="sft"), tmp_path / "data"
    run("ingest", root, "--output", data / "clips.parquet", "source=folder")
    assert "no dialogues yet" in run("stats", data)
    assert "cut: 6" in run("cut", data, root, "--output", data, "workers=1")
    assert "dialogue" in run("branches", data, "--output", data)
    counted = run("stats", data)
    assert [line for line in counted.splitlines() if "dialogue" in line and "sft" in line and " 3 " in line]
    assert (data / "stats.png").stat().st_size > 10_000
    assert "3 dialogues" in run("show", data, "branch=dialogue", "tier=sft")
    page = (data / "show.html").read_text()
    assert page.count("<video") == 6
    assert page.count("http") == 0, "nothing is fetched"
    run("show", data, "--output", data / "sheet.png", "count=2")
    assert (data / "sheet.png").stat().st_size > 2_000
    assert "none" in run("show", data, "branch=listening", fails=True)


def test_a_folder_without_a_manifest_is_counted_too(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "own", ["train", "val"])
    counted = run("stats", root, "--output", tmp_path / "s.png")
    assert "4 turns" in counted
    assert [line for line in counted.splitlines() if "dialogue" in line and "sft" in line and " 2 " in line]
    assert "2 dialogues" in run("show", root, "--output", tmp_path / "show.html")


def test_mistakes_are_reported_without_a_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    for command in (
        ("ingest", missing, "--output", tmp_path / "c.parquet"),
        ("cut", missing, missing, "--output", tmp_path),
        ("branches", missing, "--output", tmp_path),
        ("stats", missing),
        ("show", missing),
        ("branches", missing, "--output", tmp_path, "branches=soliloquy"),
    ):
        assert "Traceback" not in run(*command, fails=True)


def test_filmed_people_pass_through_the_same_commands(tmp_path: Path, real_clips: Path) -> None:
    root, data = tmp_path / "own", tmp_path / "data"
    root.mkdir()
    (root / "clips").symlink_to(real_clips)
    (root / "dialogues.csv").write_text(
        "dialogue,role,speaker,clip\n"
        "g,initiator,longhair,clips/grid_woman_longhair.mp4\n"
        "g,responder,denim,clips/grid_man_denim.mp4\n"
    )
    run("ingest", root, "--output", data / "clips.parquet", "source=folder")
    run("cut", data, root, "--output", data, "longest_side=96", "workers=1")
    run("branches", data, "--output", data)
    dialogues, report = read_folder(data)
    assert [d.branch for d in dialogues] == ["dialogue", "single", "single"]
    assert not report.skipped


def test_pipes_and_dangling_links_do_not_stop_an_ingest(tmp_path: Path) -> None:
    """Opening a pipe without a writer would wait for ever."""
    from vidchat.data.manifest.speakervid.archives import read_archive

    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "b.tar").symlink_to("nowhere")
    for name in ("a.tar", "b.tar"):
        assert [member.reason for member in read_archive(tmp_path / name)] == ["not a plain file"]
    folder = tmp_path / "seamless"
    folder.mkdir()
    os.mkfifo(folder / "V1_S1_I1_P1.json")
    os.mkfifo(folder / "pipe.tar")
    (folder / "gone.tar").symlink_to("nowhere")
    words = [{"start": 0.0, "end": 2.0, "transcript": "yes"}]
    (folder / "V1_S1_I1_P2.json").write_text(json.dumps({"metadata:transcript": words}))
    report = ingest_seamless(folder, tmp_path / "clips.parquet", workers=1)
    assert report["clips"] == 1
    lines = [json.loads(line) for line in (tmp_path / "clips.damaged.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["not a plain file"] * 3
    labels = tmp_path / "labels" / "merged_anno"
    labels.mkdir(parents=True)
    os.mkfifo(labels / "pipe.tar.gz")
    os.mkfifo(labels / "pipe.json")
    (labels / "gone.tar.gz").symlink_to("nowhere")
    assert ingest_speakervid(tmp_path / "labels", tmp_path / "out" / "clips.parquet", workers=1)["clips"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "clips.damaged.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["not a plain file"] * 3


def test_a_folder_of_clips_with_a_pipe_among_them(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 9)
    os.mkfifo(tmp_path / "pipe.mp4")
    report = ingest_folder(tmp_path, tmp_path / "out" / "clips.parquet")
    assert report["clips"] == 1
    assert "pipe.mp4" in (tmp_path / "out" / "clips.damaged.jsonl").read_text()


def test_a_table_with_an_unclosed_quote_is_refused(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 9)
    text = '\ufeffdialogue,role,speaker,clip\nd1,responder,,a.mp4\nd2,responder,bob,"a.mp4'
    (tmp_path / "dialogues.csv").write_text(text)
    ingest_folder(tmp_path, tmp_path / "out" / "clips.parquet")
    speakers = pq.read_table(tmp_path / "out" / "clips.parquet")["speaker"].to_pylist()
    assert sorted(speakers) == ["bob", "unknown person of a.mp4 0-end"]
    (tmp_path / "dialogues.csv").write_text(text + "x" * 200_000)
    with pytest.raises(FolderError, match="is not a valid CSV row"):
        ingest_folder(tmp_path, tmp_path / "out" / "clips.parquet")
