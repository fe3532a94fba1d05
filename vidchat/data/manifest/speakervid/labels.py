"""Records of `raw_labels/*` and the lists: transcripts, captions, blur, scenes, diarisation, and the clips of a set."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from vidchat.data.manifest.speakervid.json_values import Record, number, text
from vidchat.data.manifest.speakervid.names import Damage, is_video, parse_clip, parse_video, parse_voiced

Reader = Callable[[str, Any, "Counter[str]", "list[str]"], dict[str, Any]]


def read_asr(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Reads Whisper's result; its three scores are means over the segments, weighted by their durations.

    Its segments are the words with times, if each has a text, a start and an end.
    """
    absent: Counter[str] = Counter()
    record = Record(data, absent)
    _, segments = record.value("segments")
    if segments is not None and not isinstance(segments, list):
        raise Damage("wrong type", "'segments' is not a list")
    words = record.text("text")
    row = {
        "voiced": parse_voiced(name),
        "text": None if words is None else words.strip(),
        "language": record.text("language"),
        "timed_words": _timed(segments or []),
        **_weighted([Record(s, absent) for s in segments or []]),
    }
    tally.update({f"-{key}": count for key, count in absent.items()})
    return row


def _timed(segments: list[Any]) -> list[dict[str, Any]] | None:
    """Returns the segments with their times; `None` if there are none, or one lacks its text or a time."""
    timed = []
    for segment in (Record(s, Counter()) for s in segments):
        words, start, end = segment.text("text"), segment.number("start", low=0), segment.number("end", low=0)
        if words is None or start is None or end is None:
            return None
        timed.append({"text": words.strip(), "start_s": start, "end_s": end})
    return timed or None


def _weighted(segments: list[Record]) -> dict[str, float | None]:
    names = {"asr_confidence": "avg_logprob", "asr_no_speech": "no_speech_prob", "asr_compression": "compression_ratio"}
    sums, weights = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for segment in segments:
        start, end = (segment.number(key, low=0) for key in ("start", "end"))
        if start is not None and end is not None and end < start:
            raise Damage("ends before it starts", f"a segment, {start:g} to {end:g} s")
        weight = max(1e-3, end - start) if start is not None and end is not None else 1e-3
        for name, key in names.items():
            limits = (0.0, 1.0) if key == "no_speech_prob" else (-math.inf, math.inf)
            value = segment.number(key, low=limits[0], high=limits[1])
            if value is not None:
                sums[name] += weight * value
                weights[name] += weight
    return {name: sums[name] / weights[name] if weights[name] else None for name in names}


# The captions' keys are undocumented: the first of these in a record is read, in any capitalisation and spacing.
CAPTION_KEYS: dict[str, tuple[str, ...]] = {
    "topic": ("topic", "topics"),
    "facing": ("facing_direction", "facing", "orientation"),
    "body_view": ("body_view", "upper_body_only", "half_body", "body"),
    "camera_motion": ("camera_motion", "camera_movement"),
    "people": ("number_of_people", "people_number", "num_people"),
    "motion": ("motion_score", "motion_intensity_level", "motion_intensity", "activity_level", "motion"),
}
# Fields of the caption's text, in this order; any may be missing.
CAPTION_FIELDS: tuple[tuple[str, ...], ...] = (
    ("caption", "description", "overall_caption"),
    ("observed_actions", "movement_caption"),
    ("expression_caption", "expression"),
    ("entity_list", "entities"),
    *(CAPTION_KEYS[name] for name in ("people", "facing", "body_view", "motion", "camera_motion")),
)


def read_anno(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Reads Qwen2.5-VL's description: the known keys, their text, and the complete object as JSON in `annotation`."""
    clip = parse_clip(name).clip
    record = Record(data, Counter())
    leaves = {_normalised(key): value for key, value in _leaves(record.data)}
    row: dict[str, Any] = {"clip": clip, "annotation": _as_json(record.data)}
    for column, keys in CAPTION_KEYS.items():
        value = next((leaves[key] for key in keys if leaves.get(key) not in (None, "")), None)
        if value is None:
            tally[f"-{keys[0]}"] += 1
        row[column] = _first_number(column, value) if column in ("people", "motion") else _as_text(column, value)
    row["caption"] = _caption(leaves)
    if row["caption"] is None:
        tally["-caption"] += 1
    if row["people"] is not None:
        row["people"] = int(row["people"])
    if row["motion"] is not None and not 0 <= row["motion"] <= 10:
        raise Damage("out of range", f"motion is {row['motion']:g}, not within 1 to 5")
    known = {key for keys in (*CAPTION_KEYS.values(), *CAPTION_FIELDS) for key in keys}
    tally.update(f"+{key[:60]}" for key in leaves if key not in known)
    return row


def _caption(leaves: dict[str, Any]) -> str | None:
    """Returns the fields of a description as text: `A man sits. facing direction: left. ...`."""
    parts = []
    for keys in CAPTION_FIELDS:
        key = next((key for key in keys if leaves.get(key) not in (None, "")), None)
        if key is not None:
            value = {True: "yes", False: "no"}[leaves[key]] if isinstance(leaves[key], bool) else leaves[key]
            words = " ".join((_as_text(key, value) or "").split()).rstrip(".")
            parts.append(words if keys is CAPTION_FIELDS[0] else f"{key.replace('_', ' ')}: {words}")
    return f"{'. '.join(parts)}." if parts else None


def _as_json(data: dict[str, Any]) -> str:
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError:
        raise Damage("not finite", "a number of the caption") from None


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields (key, value) of all leaves of nested objects; a list of strings is joined into one."""
    if isinstance(value, dict) and depth < 8:
        for name, inner in value.items():
            yield from _leaves(inner, name, depth + 1)
    elif isinstance(value, list) and all(isinstance(v, str) for v in value):
        yield key, ", ".join(value)
    elif not isinstance(value, dict | list):
        yield key, value


def _normalised(key: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")


def _as_text(column: str, value: Any) -> str | None:
    return None if value is None else text(column, value if isinstance(value, str) else str(value))


def _first_number(column: str, value: Any) -> float | None:
    """Returns the first number of a value: 3 for `3`, `"3"` and `"Level 3 (moderate)"`; `None` without a number."""
    if isinstance(value, str):
        match = re.search(r"\d+(?:\.\d+)?", value)
        return float(match[0]) if match and len(match[0]) < 10 else None
    return None if value is None or isinstance(value, bool) else number(column, value, 0, 1_000_000)


def read_l_score(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Reads the mean sharpness of face and hands (variance of the Laplacian of 128x128 crops), at any depth.

    A frame without a face or hand has no score: values that are null, negative or not finite are left out.
    """
    if not isinstance(data, dict) and not (isinstance(data, list) and all(isinstance(v, dict) for v in data)):
        raise Damage("not an object", "nor a list of frames")
    scores: dict[str, list[float]] = {"face": [], "hand": []}
    dropped = _collect(data, None, scores)
    if dropped and not any(scores.values()):
        raise Damage("not finite", "every score")
    if dropped:
        notes.append("scores that are negative or not finite were left out")
    means = {part: sum(values) / len(values) if values else None for part, values in scores.items()}
    tally.update(f"-{part}" for part, mean in means.items() if mean is None)
    if isinstance(data, dict):
        tally.update(f"+{key[:60]}" for key in data if _part(key) is None)
    return {"clip": parse_clip(name).clip, "face_blur": means["face"], "hand_blur": means["hand"]}


def _collect(value: Any, part: str | None, scores: dict[str, list[float]], depth: int = 0) -> int:
    """Collects the numbers below a key that names a body part; returns the number of invalid ones."""
    if depth > 8:
        return 0
    if isinstance(value, dict):
        inner = ((_part(str(key), part), v) for key, v in value.items())
        return sum(_collect(v, p, scores, depth + 1) for p, v in inner)
    if isinstance(value, list):
        return sum(_collect(v, part, scores, depth + 1) for v in value)
    if part is None or value is None or isinstance(value, bool):
        return 0
    if not isinstance(value, int | float):
        raise Damage("wrong type", f"a score of the {part} is not a number")
    if isinstance(value, int) and abs(value) > 1 << 53:
        raise Damage("out of range", f"a score of the {part}")
    if not math.isfinite(value) or value < 0:
        return 1
    scores[part].append(float(value))
    return 0


def _part(key: str, above: str | None = None) -> str | None:
    """Returns the body part that a key names, else that of the key above; a bare `score` is the face's."""
    lower = key.lower()
    named = "hand" if "hand" in lower else "face" if "face" in lower else above
    return "face" if named is None and lower == "score" else named


def read_scenes(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Reads the index, start and end of each scene of a video, in seconds."""
    record = Record(data, Counter())
    scenes = []
    for key, value in record.data.items():
        if match := re.fullmatch(r"scene_(\d{1,9})", key):
            scene = Record(value, Counter())
            start, end = (scene.number(k, low=0, needed=True) for k in ("start_seconds", "end_seconds"))
            if start is None or end is None or end < start:
                raise Damage("ends before it starts", f"{key}, {start} to {end} s")
            scenes.append({"scene": int(match[1]), "start_s": start, "end_s": end})
    if not scenes:
        raise Damage("missing key", "scene_000")
    return {"video_key": parse_video(name), "scenes": sorted(scenes, key=lambda s: s["scene"])}


def read_speakers(name: str, data: Any, tally: Counter[str], notes: list[str]) -> dict[str, Any]:
    """Reads the diarised speech of a video. `A` in the record is *all* intervals; `speaker_json` names the speakers."""
    record = Record(data, Counter())
    _, intervals = record.value("speaker_json", "org_out", needed=True)
    if not isinstance(intervals, dict):
        raise Damage("wrong type", "'speaker_json' is not an object")
    for key in ("spaeker", "A"):
        if record.data.get(key) is None:
            tally[f"-{key}"] += 1
    speech = []
    for value in intervals.values():
        interval = Record(value, Counter())
        start, end = (number(k[0], interval.value(*k, needed=True)[1], 0) for k in (("start",), ("stop", "end")))
        if end < start:
            raise Damage("ends before it starts", f"an interval, {start:g} to {end:g} s")
        speaker = text("speaker", interval.value("speaker", needed=True)[1])
        speech.append({"start_s": start, "end_s": end, "speaker": speaker})
    return {
        "video_key": parse_video(name),
        "speech": sorted(speech, key=lambda s: (s["start_s"], s["end_s"], s["speaker"])),
    }


# Strings that are, or should be, names; the text between the closing and next opening quote never matches.
_STRING = re.compile(rb'"([^"]*_full_video[^"]*|[^"]*\.(?:json|mp4))"')
_BLOCK = 1 << 20
_LONGEST = 1 << 16  # largest number of bytes of one string; a clip's name has fifty


def read_list(file: BinaryIO) -> Iterator[str | Damage]:
    """Yields the clips that a list names, whatever its shape: a list, objects in a list, an object of lists.

    The file is read in blocks and searched for strings, as the list of all clips is a third of a gigabyte of JSON.
    """
    rest, last, clips = b"", b"", 0
    while block := file.read(_BLOCK):
        last = block.rstrip()[-1:] or last
        rest, end = rest + block, 0
        for match in _STRING.finditer(rest):
            end = match.end()
            name = match[1].decode("utf-8", "backslashreplace").rpartition("/")[2]
            try:
                yield parse_clip(name).clip
                clips += 1
            except Damage as damage:
                if not is_video(name):  # keys may be video names
                    yield damage
        rest = rest[end:][-_LONGEST:]
    if not last:
        yield Damage("empty file")
    elif last not in b"]}":
        yield Damage("the list is cut off")
    if last and not clips:
        yield Damage(
            "no clips in the list", "it should hold names such as BK6_XIz6-ZE_1920x1080_full_video_000_A_00.json"
        )
