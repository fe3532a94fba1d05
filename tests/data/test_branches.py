from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidchat.data.folder import read_folder
from vidchat.data.manifest.branches import BRANCH_COLUMNS, BranchSettings, DerivedDialogue, find_dialogues
from vidchat.data.manifest.dialogues import DeriveSettings, write_dialogues
from vidchat.data.manifest.manifest_file import ManifestError, as_table, clip_file, sorted_rows, write_manifest
from vidchat.data.manifest.splits import SplitSettings, split_videos
from vidchat.data.manifest.tiers import TierSettings, tier_of

GOOD = {"hand_blur": 0.6, "face_blur": 0.8, "dover": 0.7, "motion": 3.0, "asr_confidence": -0.5}


def clip(voice: str, start: float, end: float, scene: int, **more: Any) -> dict[str, Any]:
    name = f"{scene:03d}_{voice}_{more.pop('person', 0):02d}"
    speaker = f"v_{voice}" if len(voice) == 1 else name
    row = {"clip": name, "video": "v", "voice": voice, "start_s": start, "end_s": end, "scene": scene, **GOOD}
    row |= {"duration_s": end - start, "speaker": speaker, "text": f"words of {name}", "sync_confidence": 6.0}
    return {**dict.fromkeys(BRANCH_COLUMNS), **row, **more}


def derive(clips: list[dict[str, Any]], branch: str, **options: Any) -> list[DerivedDialogue]:
    return list(find_dialogues(clips, BranchSettings(**options), [branch]))  # type: ignore[list-item]


def names(dialogue: DerivedDialogue) -> list[tuple[str, str]]:
    return [(role, row["clip"]) for role, row, _ in dialogue.turns]


def test_a_dialogue_is_two_voices_close_in_time() -> None:
    clips = [
        clip("A", 0, 5, 0),
        clip("B", 5, 9, 1),
        clip("B", 9, 13, 2),  # the same voice does not answer itself
        clip("A", 20, 25, 3),  # too late
        clip("B", 24, 30, 4),  # too early
    ]
    pairs = [names(dialogue) for dialogue in derive(clips, "dialogue")]
    assert pairs == [[("initiator", "000_A_00"), ("responder", "001_B_00")]]
    assert len(derive(clips, "dialogue", gap_s=8.0, overlap_s=2.0)) == 3


def test_in_one_scene_the_person_who_talks_first_is_the_initiator() -> None:
    speech = [
        {"start_s": 0.2, "end_s": 2.0, "speaker": "B"},
        {"start_s": 2.5, "end_s": 5.0, "speaker": "A"},
    ]
    clips = [clip("A", 0, 6, 0, speech=speech), clip("B", 0, 6, 0, person=1, speech=speech)]
    (dialogue,) = derive(clips, "dialogue")
    assert names(dialogue) == [("initiator", "000_B_01"), ("responder", "000_A_00")]


def test_the_track_in_better_sync_is_the_turn_of_a_voice() -> None:
    clips = [clip("A", 0, 5, 0), clip("B", 5, 9, 1, sync_confidence=2.0), clip("B", 5, 9, 1, person=1)]
    (dialogue,) = derive(clips, "dialogue")
    assert dialogue.turns[1][1]["clip"] == "001_B_01"


def test_third_voices_and_silent_people_have_no_turns() -> None:
    clips = [clip("A", 0, 5, 0), clip("C", 5, 9, 1), clip("None", 9, 13, 2)]
    assert not derive(clips, "dialogue")
    assert len(derive(clips, "single")) == 3


def test_the_listener_beside_a_talker_is_the_person_out_of_sync() -> None:
    talker, quiet = clip("A", 0, 5, 0), clip("A_None", 0, 5, 0, person=1, sync_confidence=0.5)
    (dialogue,) = derive([talker, quiet], "listening")
    assert (dialogue.kind, names(dialogue)) == (
        "co_present",
        [("initiator", "000_A_00"), ("responder", "000_A_None_01")],
    )
    assert not derive([talker, {**quiet, "sync_confidence": 4.5}], "listening")
    assert derive([talker, {**quiet, "sync_confidence": 4.5}], "listening", sync_difference=1.0)
    assert not derive([talker, {**quiet, "sync_confidence": None}], "listening")
    assert derive(
        [{**talker, "sync_confidence": None}, {**quiet, "sync_confidence": None, "listens": True}], "listening"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sync_confidence": 3.0},
        {"sync_confidence": None},
        {"text": ""},
        {"text": None},
        {"asr_confidence": -1.2},
        {"asr_confidence": None},
        {"asr_no_speech": 0.9},
        {"asr_compression": 2.6},
    ],
)
def test_a_listener_to_an_unseen_voice(change: dict[str, Any]) -> None:
    alone = clip("None", 0, 5, 0, sync_confidence=0.5)
    (dialogue,) = derive([alone], "listening")
    assert dialogue.kind == "unseen"
    assert [voice_only for _, _, voice_only in dialogue.turns] == [True, False]
    assert not derive([alone | change], "listening")


def test_context_is_the_turns_with_text_shortly_before() -> None:
    clips = [
        clip("A", 0, 4, 0),
        clip("B", 30, 34, 1, text=None),
        clip("A", 40, 44, 2),
        clip("B", 50, 54, 3),
        clip("A", 54, 58, 4),
    ]
    (dialogue,) = derive(clips, "multi_turn", delta_t_s=0.1, overlap_s=0.0)
    assert dialogue.kind == "contextual"
    assert names(dialogue) == [("responder", "002_A_00"), ("initiator", "003_B_00"), ("responder", "004_A_00")]
    assert dialogue.judged == 3, "every turn of the responder is learnt"
    (longer,) = (f for f in derive(clips, "multi_turn", context_s=60.0) if f.kind == "contextual")
    assert len(longer.turns) == 4, "a clip without text is not context"


def test_a_sequence_has_no_gaps() -> None:
    clips = [clip("AB"[k % 2], 5 * k, 5 * k + 5, k) for k in range(5)] + [clip("B", 40, 45, 9)]
    sequences = [f for f in derive(clips, "multi_turn") if f.kind == "sequential"]
    assert [names(f) for f in sequences] == [
        [("responder" if k % 2 == 0 else "initiator", f"{k:03d}_{'AB'[k % 2]}_00") for k in range(5)]
    ]
    assert [len(f.turns) for f in derive(clips, "multi_turn", max_turns=3) if f.kind == "sequential"] == [3]


def test_sft_passes_all_five_thresholds() -> None:
    row = clip("A", 0, 5, 0, listens=None, given_tier=None, in_sft_list=False)
    missing: Counter[str] = Counter()
    assert tier_of(row, TierSettings(), missing) == "sft"
    for name, low in TierSettings().thresholds.items():
        assert tier_of(row | {name: low}, TierSettings(), missing) == "pretrain", "the threshold itself is not above it"
    assert not missing
    lacking = row | {"motion": None}
    tiers = [tier_of(lacking, TierSettings(missing=m), missing) for m in ("pretrain", "pass", "drop")]  # type: ignore[arg-type]
    assert tiers == ["pretrain", "sft", None]
    assert missing == Counter(motion=3)
    assert tier_of(row | {"voice": "None", "asr_confidence": None}, TierSettings(), missing) == "sft"
    assert tier_of(row | {"in_sft_list": False}, TierSettings(by="release"), missing) == "pretrain"


people = st.integers(0, 12).map(lambda k: f"p{k}")
clips_of_videos = st.lists(
    st.tuples(st.integers(0, 15).map(lambda k: f"v{k}"), people, st.sampled_from([None, None, "train", "val", "test"])),
    min_size=1,
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(clips_of_videos, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 3))
def test_no_person_and_no_video_is_in_two_splits(
    clips: list[tuple[str, str, str | None]], val: float, test: float, seed: int
) -> None:
    rows = [
        {
            "clip": f"c{k}",
            "video": video,
            "speaker": who,
            "media": None,
            "given_split": given_split,
            "in_test_list": None,
        }
        for k, (video, who, given_split) in enumerate(clips)
    ]
    splits, _ = split_videos(rows, SplitSettings(val, test, seed))
    seen: dict[str, set[str]] = {}
    for video, who, _ in clips:
        seen.setdefault(who, set()).add(splits[video])
    assert all(len(splits_of_person) == 1 for splits_of_person in seen.values())
    assert split_videos(rows[::-1], SplitSettings(val, test, seed))[0] == splits, "the order of rows does not matter"
    for video, _, given_split in clips:
        if given_split == "test":
            assert splits[video] == "test"


def test_more_data_moves_no_existing_video() -> None:
    rows = [
        {
            "clip": f"c{k}",
            "video": f"v{k}",
            "speaker": f"p{k}",
            "media": None,
            "given_split": None,
            "in_test_list": False,
        }
        for k in range(2000)
    ]
    half, full = (split_videos(part, SplitSettings(0.1, 0.1))[0] for part in (rows[:1000], rows))
    assert all(full[video] == split for video, split in half.items())
    shares = Counter(full.values())
    assert 150 < shares["val"] < 250
    assert 150 < shares["test"] < 250


def test_the_folder_reader_reads_the_derived_dialogues(tmp_path: Path) -> None:
    clips = [clip("A", 0, 5, 0), clip("B", 5, 9, 1, dover=0.4), clip("None", 9, 14, 2, sync_confidence=0.1)]
    clips = [dict(row.items()) | {"source": "speakervid"} for row in clips]
    manifest = tmp_path / "clips.parquet"
    write_manifest(manifest, [as_table(sorted_rows(clips))])
    for row, voice_only in ((clips[0], False), (clips[1], False), (clips[2], False), (clips[2], True)):
        path = tmp_path / clip_file(row["clip"], row["video"], voice_only)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"media")
    assert sum(write_dialogues(manifest, tmp_path, DeriveSettings(), dry_run=True).counts.values()) == 5
    assert not list(tmp_path.glob("dialogues.*"))
    write_dialogues(manifest, tmp_path, DeriveSettings(splits=SplitSettings(0, 0)))
    dialogues, report = read_folder(tmp_path)
    assert not report.skipped
    by_branch = {d.branch: d for d in dialogues}
    assert Counter(d.branch for d in dialogues) == Counter(single=3, dialogue=1, listening=1)
    assert (by_branch["dialogue"].tier, by_branch["listening"].tier) == ("pretrain", "sft")
    question, answer = by_branch["listening"].question, by_branch["listening"].answer
    assert question is not None
    assert (question.text, answer.text) == ("words of 002_None_00", None), "a listener has no text"
    assert question.path.name == "002_None_00~voice.mp4"
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "dialogues.jsonl").read_text().splitlines())}
    write_dialogues(manifest, tmp_path, DeriveSettings(splits=SplitSettings(0, 0)), file_format="parquet")
    assert not (tmp_path / "dialogues.jsonl").exists()
    assert read_folder(tmp_path)[0] == dialogues
    assert set(pq.read_table(tmp_path / "dialogues.parquet")["id"].to_pylist()) == set(lines)


def test_turns_start_where_the_source_says_and_keep_their_words(tmp_path: Path) -> None:
    said = [{"text": "oh", "start_s": 0.2, "end_s": 0.6}, {"text": "yes", "start_s": 1.2, "end_s": 1.6}]
    rows = [
        clip("A", 60, 65, 0, timed_words=said, caption="A man nods."),
        clip("B", 65.4, 69, 1),
        clip("A", 69.2, 74, 2),
        clip("A_None", 60, 65, 0, person=1, sync_confidence=0.5, timed_words=said, caption="A woman smiles."),
        clip("None", 80, 85, 3, sync_confidence=0.5, timed_words=said, caption="A boy looks up."),
    ]
    write_manifest(tmp_path / "clips.parquet", [as_table(sorted_rows(rows))])
    write_dialogues(tmp_path / "clips.parquet", tmp_path, DeriveSettings())
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "dialogues.jsonl").read_text().splitlines())}
    starts = {name: [turn.get("at") for turn in line["turns"]] for name, line in lines.items()}
    assert starts["single/000_A_00"] == [None]
    assert starts["dialogue/001_B_00"] == [0.0, 5.4]
    assert starts["multi_turn/sequential/002_A_00"] == [0.0, 5.4, 9.2]
    assert starts["listening/000_A_None_01"] == starts["listening/003_None_00"] == [0.0, 0.0]
    (only,) = lines["single/000_A_00"]["turns"]
    assert (only["words"], only["caption"]) == ([["oh", 0.2, 0.6], ["yes", 1.2, 1.6]], "A man nods.")
    (quiet,) = lines["single/000_A_None_01"]["turns"]
    assert "words" not in quiet, "a listener has no words"
    assert quiet["caption"] == "A woman smiles."
    voice, seen = lines["listening/003_None_00"]["turns"]
    assert "caption" not in voice, "an unseen talker is not described"
    assert (len(voice["words"]), seen["caption"]) == (2, "A boy looks up.")


def test_a_manifest_of_an_earlier_version_is_named(tmp_path: Path) -> None:
    table = as_table([clip("A", 0, 5, 0)]).drop_columns(["timed_words"])
    pq.write_table(table, tmp_path / "clips.parquet")
    with pytest.raises(ManifestError, match="no column timed_words; make it again with 'vidchat data ingest'"):
        write_dialogues(tmp_path / "clips.parquet", tmp_path, DeriveSettings())


def test_dialogues_of_another_program_are_left_alone(tmp_path: Path) -> None:
    write_manifest(tmp_path / "clips.parquet", [as_table([clip("A", 0, 5, 0)])])
    (tmp_path / "dialogues.jsonl").write_text("precious")
    with pytest.raises(ManifestError, match="left alone"):
        write_dialogues(tmp_path / "clips.parquet", tmp_path, DeriveSettings())
    assert (tmp_path / "dialogues.jsonl").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".x", "a\0"])
def test_the_name_of_a_clip_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ManifestError):
        clip_file(name, "v")
