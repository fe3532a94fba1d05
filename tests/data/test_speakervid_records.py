from __future__ import annotations

import io
import json
import math
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidchat.data.manifest.speakervid.json_values import parse
from vidchat.data.manifest.speakervid.labels import (
    read_anno,
    read_asr,
    read_l_score,
    read_list,
    read_scenes,
    read_speakers,
)
from vidchat.data.manifest.speakervid.merged import read_merged
from vidchat.data.manifest.speakervid.names import Damage, base_name, parse_clip, parse_voiced
from vidchat.data.manifest.speakervid.parts import READERS, part_schema

NAME = "BK6_XIz6-ZE_1920x1080_full_video_022_B_None_01.json"
VIDEO = "BK6_XIz6-ZE_1920x1080_full_video"
# The example record of the data set's web page.
RECORD: dict[str, Any] = {
    "num_frames": 294,
    "is_talking": 1,
    "clip_speaker_num": 1,
    "clear": 2221.807638888889,
    "video_name": VIDEO,
    "video_total_duration": 11.811800000000005,
    "start": 297.25603333333333,
    "duration": 4.2,
    "bbox": [0.6020080312093099, 0.060399305555555595, 0.9994791666666667, 0.9140717230902777],
    "conf": 0,
    "sync": {"0": [[6.115677, 7.334573, -3.0], [3.444378, 9.135991, -1.0]], "1": [[0, 0, 0], [0, 0, 0]]},
    "speaker": ["B", "B"],
    "raw_video_height": 1080,
    "raw_video_width": 1920,
    "clip_video_height": 928,
    "clip_video_width": 768,
    "start_seconds": 289.6560333333333,
    "end_seconds": 301.4678333333333,
    "dover": 0.5581270269629535,
}


def merged(record: Any = RECORD, name: str = NAME) -> tuple[dict[str, Any], Counter[str], list[str]]:
    tally: Counter[str] = Counter()
    notes: list[str] = []
    return read_merged(name, record, tally, notes), tally, notes


def test_the_real_record() -> None:
    row, tally, notes = merged()
    assert (row["video"], row["voice"], row["person"], row["scene"]) == ("BK6_XIz6-ZE", "B_None", 1, 22)
    assert (row["x2"] - row["x1"]) * row["width"] == pytest.approx(763, abs=1)
    assert row["end_s"] - row["start_s"] == pytest.approx(11.8118)
    assert row["track_end_s"] == pytest.approx(301.456, abs=1e-3)
    assert (row["sync_confidence"], row["other_sync_confidence"]) == (0, 6.115677)
    assert row["dover"] == RECORD["dover"]
    assert not tally
    assert not notes


def test_both_spellings_of_times() -> None:
    record = {k: v for k, v in RECORD.items() if k not in ("start", "duration", "start_seconds", "end_seconds")}
    record |= {"start_new": RECORD["start"], "duration_new": 4.2, "org_start_seconds": RECORD["start_seconds"]}
    row, tally, _ = merged(record)
    expected = merged()[0]
    for name in ("start_s", "end_s", "track_start_s", "track_end_s"):
        assert row[name] == pytest.approx(expected[name])
    assert tally == Counter({"-end_seconds": 1})


def test_missing_and_unknown_keys_are_counted_not_refused() -> None:
    record = {k: v for k, v in RECORD.items() if k not in ("dover", "sync")} | {"novelty": 1, "clear": None}
    row, tally, _ = merged(record)
    assert row["dover"] is None
    assert row["clarity"] is None
    assert tally == Counter({"-dover": 1, "-sync": 1, "-clear": 1, "+novelty": 1})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": None}, "missing key"),
        ({"bbox": [0.6, 0.1, 0.2, 0.9]}, "box out of order"),
        ({"bbox": [0.1, 0.1, 0.3, 1.2]}, "box outside the frame"),
        ({"bbox": [0.1, 0.1, math.nan, 0.9]}, "not finite"),
        ({"bbox": [True, 0.1, 0.3, 0.9]}, "wrong type"),
        ({"bbox": {"x": 1}}, "wrong type"),
        ({"duration": 0}, "duration is not positive"),
        ({"end_seconds": 1.0}, "ends before it starts"),
        ({"dover": "0.5"}, "wrong type"),
        ({"dover": -0.5}, "out of range"),
        ({"num_frames": 2.5}, "wrong type"),
        ({"num_frames": 10**400}, "out of range"),
        ({"sync": {"0": [["a", 1, 2]]}}, "wrong type"),
        ({"sync": {"0": 3}}, "wrong type"),
        ({"sync": {"B": [[6.1, 7.3, -3.0]]}}, "wrong type"),
        ({"speaker": "B"}, "wrong type"),
        ({"is_talking": "yes"}, "wrong type"),
        ({"video_name": "AAAAAAAAAAA_1920x1080_full_video"}, "names another video"),
        ({"video_name": "\ud800"}, "not Unicode"),
    ],
)
def test_a_damaged_record_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(Damage) as caught:
        merged(RECORD | change)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\0" * 100, "empty file"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"\xff": 1}', "not UTF-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_bytes_that_are_no_json(data: bytes, reason: str) -> None:
    with pytest.raises(Damage) as caught:
        parse(data)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["../x/" + NAME, "/" + NAME, "a\\" + NAME])
def test_a_path_that_leaves_the_archive_is_refused(name: str) -> None:
    with pytest.raises(Damage):
        base_name(name)


def test_names() -> None:
    name = parse_clip("-a_b_c-d_e1_640x360_full_video_1000_A_12.mp4")
    assert (name.youtube, name.scene, name.voice, name.person) == ("-a_b_c-d_e1", 1000, "A", 12)
    assert name.speaker == "-a_b_c-d_e1_A"
    none = parse_clip(NAME)
    assert none.speaker == none.clip, "a person without a voice is named by the clip"
    assert parse_voiced(f"{VIDEO}_022_B_None.json") == parse_voiced(NAME) == none.voiced
    sizeless = "BK6_XIz6-ZE_0x0_full_video_022_B_01"
    for bad in ("x", sizeless, "BK6_XIz6-ZE_1920x1080_full_video_22_B_01", "BK6_XIz6/ZE_1920x1080_full_video_022_B_01"):
        with pytest.raises(Damage):
            parse_clip(bad)


def test_scores_of_a_transcript_are_weighted_by_time() -> None:
    segments = [
        {"start": 0, "end": 3, "avg_logprob": -0.2, "no_speech_prob": 0.1, "compression_ratio": 1.0},
        {"start": 3, "end": 4, "avg_logprob": -1.0, "no_speech_prob": 0.5, "compression_ratio": 3.0},
    ]
    row = read_asr(f"{VIDEO}_022_B.json", {"text": " hi there", "language": "en", "segments": segments}, Counter(), [])
    assert row["text"] == "hi there"
    assert row["asr_confidence"] == pytest.approx(-0.4)
    assert row["asr_no_speech"] == pytest.approx(0.2)
    assert row["asr_compression"] == pytest.approx(1.5)


def test_segments_of_a_transcript_are_words_with_times() -> None:
    segments = [{"start": 0, "end": 3, "text": " oh yes."}, {"start": 3, "end": 4.5, "text": " well"}]
    name = f"{VIDEO}_022_B.json"
    assert read_asr(name, {"text": "", "segments": segments}, Counter(), [])["timed_words"] == [
        {"text": "oh yes.", "start_s": 0.0, "end_s": 3.0},
        {"text": "well", "start_s": 3.0, "end_s": 4.5},
    ]
    for incomplete in ([], [*segments, {"start": 5, "text": "so"}], [{"start": 0, "end": 1}]):
        assert read_asr(name, {"text": "", "segments": incomplete}, Counter(), [])["timed_words"] is None
    with pytest.raises(Damage, match="not a string"):
        read_asr(name, {"text": "", "segments": [{"start": 0, "end": 1, "text": 3}]}, Counter(), [])


def test_a_caption_is_text_whose_fields_may_be_missing() -> None:
    data = {
        "Upper-Body Only": True,
        "Facing Direction": "left",
        "caption": "A man\n sits.",
        "Entity List": ["cup", "hat"],
    }
    assert read_anno(NAME, data, Counter(), [])["caption"] == (
        "A man sits. entity list: cup, hat. facing direction: left. upper body only: yes."
    )
    assert read_anno(NAME, {"expression_caption": "calm"}, Counter(), [])["caption"] == "expression caption: calm."
    tally: Counter[str] = Counter()
    assert read_anno(NAME, {"novelty": 1}, tally, [])["caption"] is None
    assert tally["-caption"] == 1


def test_captions_by_any_spelling() -> None:
    data = {"Motion Intensity Level": "Level 4 (lively)", "scene": {"Facing-Direction": "left"}, "number_of_people": 2}
    row = read_anno(NAME, data, Counter(), [])
    assert (row["motion"], row["facing"], row["people"]) == (4.0, "left", 2)
    assert json.loads(row["annotation"]) == data


def test_blur_at_any_depth() -> None:
    frames = [{"face": 1.0, "left_hand": [0.2, None], "right_hand": {"score": 0.4}}, {"face": 2.0}]
    row = read_l_score(NAME, {"frames": frames}, Counter(), [])
    assert (row["face_blur"], row["hand_blur"]) == (1.5, pytest.approx(0.3))
    notes: list[str] = []
    assert read_l_score(NAME, {"face_score": [1.0, math.nan]}, Counter(), notes)["face_blur"] == 1.0
    assert notes
    assert read_l_score(NAME, {"score": [3.0, -1]}, Counter(), [])["face_blur"] == 3.0
    tally: Counter[str] = Counter()
    assert read_l_score(NAME, {"something": 1}, tally, [])["face_blur"] is None
    assert tally == Counter({"-face": 1, "-hand": 1, "+something": 1})
    for bad in ([1, 2], "x", {"face": "sharp"}, {"hand": [math.nan]}):
        with pytest.raises(Damage):
            read_l_score(NAME, bad, Counter(), [])


def test_speakers_are_read_from_speaker_json_not_from_a() -> None:
    intervals = {"5_6": {"start": 5, "stop": 6, "speaker": "B"}, "1_2": {"start": 1, "stop": 2, "speaker": "A"}}
    data = {"spaeker": ["A", "B"], "A": [[1, 2], [5, 6]], "speaker_json": intervals}
    assert [s["speaker"] for s in read_speakers(VIDEO, data, Counter(), [])["speech"]] == ["A", "B"]
    scenes = {"scene_list": [], "scene_001": {"start_seconds": 3.0, "end_seconds": 9.0}, "scene_000": {}}
    with pytest.raises(Damage):
        read_scenes(VIDEO, scenes, Counter(), [])


@pytest.mark.parametrize(
    "content",
    [
        [NAME],
        [NAME.replace(".json", ".mp4"), 7],
        [{"filename": NAME, "yt_id": "BK6_XIz6-ZE"}],
        {"BK6_XIz6-ZE": [NAME]},
        {VIDEO: [{"clip": f"merged_anno/{NAME}"}]},
    ],
)
def test_a_list_of_any_shape(content: Any) -> None:
    assert list(read_list(io.BytesIO(json.dumps(content).encode()))) == [NAME.removesuffix(".json")]


def test_a_long_list_and_a_truncated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidchat.data.manifest.speakervid.labels._BLOCK", 37)
    names = [f"{VIDEO}_{k:03d}_A_00" for k in range(200)]
    data = json.dumps({VIDEO: [f"{name}.json" for name in names]}).encode()
    assert list(read_list(io.BytesIO(data))) == names
    *found, damage = read_list(io.BytesIO(data[:2000]))
    assert found == names[: len(found)]
    assert isinstance(damage, Damage)
    assert [str(d) for d in read_list(io.BytesIO(b""))] == ["empty file"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**15, 10**40) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
VALID: dict[str, tuple[str, dict[str, Any]]] = {
    "merged_anno": (NAME, RECORD),
    "asr": (
        f"{VIDEO}_022_B.json",
        {"text": "hi", "language": "en", "segments": [{"start": 0, "end": 1, "avg_logprob": -0.5}]},
    ),
    "anno": (NAME, {"caption": "a man", "number_of_people": 2, "Motion Intensity Level": 3}),
    "l_score": (NAME, {"face_score": [1.0, 2.0], "hand_score": [0.5]}),
    "scene_json": (f"{VIDEO}.json", {"scene_000": {"start_seconds": 0.0, "end_seconds": 5.0}}),
    "speaker_json": (f"{VIDEO}.json", {"A": [], "speaker_json": {"0_1": {"start": 0, "stop": 1, "speaker": "A"}}}),
}


@pytest.mark.parametrize("kind", list(VALID))
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_record_is_a_typed_row_or_damage(kind: str, data: st.DataObject) -> None:
    """A row that Arrow cannot store would stop a run of hours."""
    name, valid = VALID[kind]
    if data.draw(st.booleans()):
        record: Any = valid | data.draw(st.dictionaries(st.sampled_from(sorted(valid)), json_values, max_size=3))
    else:
        record = data.draw(json_values)
    parsed = json.loads(json.dumps(record))
    try:
        row = READERS[kind](name, parsed, Counter(), [])
    except Damage:
        return
    row |= {"member": name, "digest": bytes(8)}
    pa.RecordBatch.from_pylist([row], schema=part_schema(kind)).validate(full=True)
