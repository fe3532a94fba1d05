"""Records of `merged_anno/{clip}.json`: time and box of a clip in its source video, voice, and quality.

Pitfalls: `bbox` is x1, y1, x2, y2; times have two spellings; `is_talking` is 1 for everybody, also for silent people; a
score of (0, 0, 0) in `sync` means that nothing was compared.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vidchat.data.manifest.speakervid.json_values import Record, number, numbers
from vidchat.data.manifest.speakervid.names import ClipName, Damage, parse_clip

KNOWN = {
    *("num_frames", "is_talking", "clip_speaker_num", "clear", "video_name", "video_total_duration", "bbox", "conf"),
    *("sync", "speaker", "raw_video_height", "raw_video_width", "clip_video_height", "clip_video_width", "dover"),
    *("start", "start_new", "duration", "duration_new", "start_seconds", "org_start_seconds", "end_seconds"),
}
SLACK = 0.005  # share of the frame by which a box may exceed it, through rounding
DAY = 86400.0  # seconds


def read_merged(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Returns the columns of the manifest that `merged_anno` fills; raises `Damage`.

    Args:
        name: File name.
        data: Parsed JSON.
        tally: Counter of missing keys (`-key`) and unknown keys (`+key`).
        notes: List to which oddities of a usable record are appended.
    """
    clip = parse_clip(name)
    absent: Counter[str] = Counter()
    record = Record(data, absent)
    video_name = record.text("video_name")
    if video_name is not None and clip.youtube not in video_name:
        raise Damage("names another video", f"'video_name' is {video_name[:80]!r}")
    row = {
        "clip": clip.clip,
        "video": clip.youtube,
        "video_key": clip.video,
        "voiced": clip.voiced,
        "scene": clip.scene,
        "voice": clip.voice,
        "person": clip.person,
        "speaker": clip.speaker,
        "frames": record.integer("num_frames", high=10_000_000),
        "dover": record.number("dover", low=0, high=1),
        "clarity": record.number("clear", low=0),
        "matched_confidence": record.number("conf"),
        "voices_matched": record.integer("clip_speaker_num"),
        "crop_width": record.integer("clip_video_width", low=1),
        "crop_height": record.integer("clip_video_height", low=1),
        **_size(record, clip, notes),
        **_times(record, notes),
        **_box(record),
        **_sync(record, clip),
    }
    _voices(record)
    tally.update({f"-{key}": count for key, count in absent.items()})
    tally.update(f"+{key[:60]}" for key in record.data if key not in KNOWN)
    return row


def _size(record: Record, clip: ClipName, notes: list[str]) -> dict[str, Any]:
    width, height = record.integer("raw_video_width", low=1), record.integer("raw_video_height", low=1)
    if (width or clip.width, height or clip.height) != (clip.width, clip.height):
        notes.append("frame size is not the name's")
    return {"width": width or clip.width, "height": height or clip.height}


def _times(record: Record, notes: list[str]) -> dict[str, Any]:
    """Returns the times of the scene, which is the clip, and of the person's track within it, in seconds."""
    start = record.number("start_seconds", "org_start_seconds", low=0, high=DAY)
    end = record.number("end_seconds", low=0, high=DAY)
    total = record.number("video_total_duration", low=0, high=DAY)
    if end is None and start is not None and total is not None:
        end = start + total
    if start is not None and end is not None:
        if end <= start:
            raise Damage("ends before it starts", f"{start:g} to {end:g} s")
        if total is not None and abs(end - start - total) > 0.5:
            notes.append("duration is not end minus start")
    track, length = (record.number(key, f"{key}_new", high=DAY) for key in ("start", "duration"))
    if track is not None and track < 0:
        raise Damage("out of range", f"'start' is {track:g} s")
    if length is not None and length <= 0:
        raise Damage("duration is not positive", f"{length:g} s")
    if start is not None and end is not None and track is not None:
        within = start - 1 <= track <= track + (length or 0) <= end + 1
        notes += [] if within else ["the person's track lies outside the scene"]
    return {
        "start_s": start,
        "end_s": end,
        "track_start_s": track,
        "track_end_s": None if track is None or length is None else track + length,
    }


def _box(record: Record) -> dict[str, float]:
    box = numbers("bbox", record.value("bbox", needed=True)[1], 4)
    if min(box) < -SLACK or max(box) > 1 + SLACK:
        raise Damage("box outside the frame", str(box))
    x1, y1, x2, y2 = (min(max(v, 0.0), 1.0) for v in box)
    if x2 <= x1 or y2 <= y1:
        raise Damage("box out of order", f"{box}, which should be x1, y1, x2, y2")
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


def _sync(record: Record, clip: ClipName) -> dict[str, float | None]:
    """Returns the best SyncNet score of this person with any voice, and the best confidence of the other people."""
    _, sync = record.value("sync")
    if sync is None:
        return {}
    if not isinstance(sync, dict):
        raise Damage("wrong type", "'sync' is not an object")
    best: dict[str, list[float]] = {}
    for person, segments in sync.items():
        if not person.isdecimal():  # else the scores of this person would seem to be missing
            raise Damage("wrong type", f"'sync' has scores of {person[:20]!r}, not of a person's number")
        if not isinstance(segments, list):
            raise Damage("wrong type", f"'sync' of person {person[:20]!r} is not a list")
        scores = [numbers("sync", segment, 3) for segment in segments]
        if scores:
            best[person] = max(scores, key=lambda s: s[0])
    own = best.pop(str(clip.person), None)
    row = dict(zip(("sync_confidence", "sync_distance", "sync_offset_frames"), own or (None,) * 3, strict=True))
    return {**row, "other_sync_confidence": max((s[0] for s in best.values()), default=None)}


def _voices(record: Record) -> None:
    _, voices = record.value("speaker")
    if voices is not None and not (isinstance(voices, list) and all(isinstance(v, str | None) for v in voices)):
        raise Damage("wrong type", "'speaker' is not a list of names")
    _, talking = record.value("is_talking")  # not informative
    if talking is not None and not isinstance(talking, bool):
        number("is_talking", talking)
