"""An imitated annotation folder in the release's layout, for tests and benchmarks.

Every video has its own random generator, so that each archive of each kind can be written without the others. Archives
of different kinds hold different videos, as in the release.
"""

from __future__ import annotations

import io
import json
import random
import string
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vidchat.data.manifest.speakervid.annotation_folder import KINDS
from vidchat.data.manifest.speakervid.names import ClipName, is_voice
from vidchat.data.workers import parallel_map

SCENES = 8  # scenes per video
WORDS = ("yes", "no", "well", "the", "a", "we", "you", "think", "tea", "rain", "music", "work", "then", "people")
TOPICS = ("music", "sport", "politics", "film", "science", "food", "travel", "business")
SIZES = ((1920, 1080), (1280, 720), (3840, 2160), (640, 360))
CAST = (("A",), ("B",), ("A", "A_None"), ("B", "B_None"), ("A", "B"), ("None",))  # voices of the people seen in a scene
OTHER = {"A": "B", "B": "A"}


@dataclass(frozen=True)
class Video:
    """A source video.

    Attributes:
        clips: (clip, start, end, voices heard) of each clip, in seconds.
        speech: (start, end, voice) of each utterance, in seconds.
    """

    key: str
    clips: list[tuple[ClipName, float, float, list[str]]]
    speech: list[tuple[float, float, str]]


def video(seed: int, index: int) -> Video:
    """Returns the video of an index, determined by the seed."""
    rng = random.Random(f"{seed} {index}")
    youtube = "".join(rng.choices(string.ascii_letters + string.digits + "-_", k=11))
    width, height = rng.choices(SIZES, (80, 15, 3, 2))[0]
    clips, speech, time, last = [], [], round(rng.uniform(0, 30), 3), rng.choice("AB")
    for scene in range(SCENES):
        length = round(rng.uniform(3, 14), 3)
        seen = rng.choices(CAST, (30, 30, 10, 10, 10, 10))[0]
        heard = [voice for voice in seen if is_voice(voice)] or [OTHER[last]]
        last = heard[-1]
        for k, voice in enumerate(heard):
            first = time + length * k / len(heard)
            speech.append((round(first + 0.2, 3), round(first + length / len(heard) - 0.2, 3), voice))
        for person, voice in enumerate(seen):
            clips.append((ClipName(youtube, width, height, scene, voice, person), time, time + length, heard))
        time = round(time + length + rng.choice((0.0, 0.04, 0.5, 3.0, 40.0)), 3)
    return Video(f"{youtube}_{width}x{height}_full_video", clips, speech)


def imitate(
    root: Path, clips: int, archives: int = 4, seed: int = 0, damage_every: int | None = None, workers: int = 1
) -> list[tuple[str, str, str]]:
    """Writes the folder; returns (kind, record, reason) of each damaged record.

    Args:
        root: Folder to write.
        clips: Approximate number of clips.
        archives: Number of archives of each kind.
        seed: Seed of all content.
        damage_every: One record in this many is damaged, by `damage.DAMAGES`; `None` damages none.
        workers: Number of processes.
    """
    videos = max(1, round(clips / (SCENES * 1.3)))
    root.mkdir(parents=True, exist_ok=True)
    jobs = [(kind, archive) for kind in KINDS for archive in range(archives)]
    job = partial(_archive, root=root, videos=videos, archives=archives, seed=seed, damage_every=damage_every)
    damaged: list[tuple[str, str, str]] = []
    for records_damaged in parallel_map(job, jobs, workers):
        damaged += records_damaged
    _lists(root, videos, seed)
    return sorted(damaged)


def _archive(
    unit: tuple[str, int], root: Path, videos: int, archives: int, seed: int, damage_every: int | None
) -> list[tuple[str, str, str]]:
    from tests.speakervid.damage import members

    kind, archive = unit
    folder = root / kind if kind == "merged_anno" else root / "raw_labels" / kind
    folder.mkdir(parents=True, exist_ok=True)
    rng, damaged = random.Random(f"{seed} {kind} {archive}"), []
    with tarfile.open(folder / f"tar_batch_{archive}.tar.gz", "w:gz", compresslevel=1) as tar:
        for number in range(videos):
            if zlib.crc32(f"{kind} {number}".encode()) % archives != archive:
                continue
            for name, data in records(kind, video(seed, number), random.Random(f"{seed} {kind} {number}")):
                files = [(tarfile.TarInfo(f"{kind}/{name}.json"), data)]
                if damage_every and rng.randrange(damage_every) == 0:
                    reason, files = members(kind, name, data, rng)
                    damaged.append((kind, name, reason))
                for info, content in files:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return damaged


def records(kind: str, video: Video, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yields (name, JSON) of a video's records of a kind."""
    if kind in ("scene_json", "speaker_json"):
        yield video.key, json.dumps(_scenes(video) if kind == "scene_json" else _speakers(video)).encode()
        return
    make = {"merged_anno": _merged, "asr": _asr, "anno": _anno, "l_score": _l_score}[kind]
    for clip, start, end, heard in video.clips:
        if kind != "asr" or clip.person == 0:
            record = make(clip, start, end, heard, rng)
            yield (clip.voiced if kind == "asr" else clip.clip), json.dumps(record, indent=4).encode()


def _merged(clip: ClipName, start: float, end: float, heard: list[str], rng: random.Random) -> dict[str, Any]:
    matched = is_voice(clip.voice)
    left, top = rng.uniform(0, 0.4), rng.uniform(0, 0.2)
    right, bottom = left + rng.uniform(0.3, 0.55), top + rng.uniform(0.5, 0.75)
    own, other = rng.uniform(3, 9), rng.uniform(0, 2)
    sync = {str(clip.person): [[own if matched else other, rng.uniform(6, 9), float(rng.randint(-3, 3))]]}
    sync[str(clip.person + 1)] = [[other if matched else own, rng.uniform(8, 12), 0.0]]
    return {
        "num_frames": round((end - start) * 25),
        "is_talking": 1,
        "clip_speaker_num": len(heard),
        "clear": rng.uniform(500, 5000),
        "video_name": clip.video,
        "video_total_duration": end - start,
        "start": start + 0.04,
        "duration": end - start - 0.04,
        "bbox": [left, top, right, bottom],
        "conf": own if matched else 0,
        "sync": sync,
        "speaker": heard,
        "raw_video_height": clip.height,
        "raw_video_width": clip.width,
        "clip_video_height": 32 * max(1, round((bottom - top) * clip.height / 32)),
        "clip_video_width": 32 * max(1, round((right - left) * clip.width / 32)),
        "start_seconds": start,
        "end_seconds": end,
        "dover": rng.uniform(0.25, 0.9),
    }


def _asr(clip: ClipName, start: float, end: float, heard: list[str], rng: random.Random) -> dict[str, Any]:
    words = rng.choices(WORDS, k=max(1, round((end - start) * 2.5)))
    segment = {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": end - start,
        "text": " ".join(words),
        "tokens": [rng.randrange(50000) for _ in range(2 * len(words))],
        "temperature": 0.0,
        "avg_logprob": -rng.uniform(0.1, 1.4),
        "compression_ratio": rng.uniform(0.8, 2.0),
        "no_speech_prob": rng.uniform(0, 0.5),
    }
    return {"text": " " + " ".join(words), "segments": [segment], "language": "en"}


def _anno(clip: ClipName, start: float, end: float, heard: list[str], rng: random.Random) -> dict[str, Any]:
    return {
        "Topic": rng.choice(TOPICS),
        "Caption": f"A person {'speaks' if is_voice(clip.voice) else 'listens'} and looks ahead.",
        "Facing Direction": rng.choice(("front", "left", "right")),
        "Camera Motion": "static",
        "Number of People": rng.choice((1, 1, 2)),
        "Upper-Body Only": True,
        "Motion Intensity Level": rng.randint(1, 5),
    }


def _l_score(clip: ClipName, start: float, end: float, heard: list[str], rng: random.Random) -> dict[str, Any]:
    face, hand, frames = rng.uniform(0.3, 1.6), rng.uniform(0.2, 1.4), round((end - start) * 2)
    return {
        "face_score": [face * rng.uniform(0.9, 1.1) for _ in range(frames)],
        "hand_score": [hand * rng.uniform(0.9, 1.1) for _ in range(frames)],
    }


def _scenes(video: Video) -> dict[str, Any]:
    times = {clip.scene: (start, end) for clip, start, end, _ in video.clips}
    spans = [f"({start}, {end})" for start, end in times.values()]
    scenes = {f"scene_{n:03d}": {"start_seconds": start, "end_seconds": end} for n, (start, end) in times.items()}
    return {"org_scene_list": spans, "scene_list": spans, **scenes}


def _speakers(video: Video) -> dict[str, Any]:
    intervals = {f"{s}_{e}": {"start": s, "stop": e, "speaker": voice} for s, e, voice in video.speech}
    voices = sorted({voice for _, _, voice in video.speech})
    return {
        "spaeker": voices,
        "A": [[start, end] for start, end, _ in video.speech],
        "speaker_json": intervals,
        "org_out": intervals,
    }


def _lists(root: Path, videos: int, seed: int) -> None:
    """Writes the three lists, each in its own layout; the longest incrementally, as there may be many videos."""
    sft, test = [], []
    with (root / "all_data_list.json").open("w", encoding="utf-8") as file:
        file.write("{")
        for number in range(videos):
            source = video(seed, number)
            names = [f"{clip.clip}.json" for clip, *_ in source.clips]
            file.write(f"{', ' if number else ''}{json.dumps(source.key)}: {json.dumps(names)}")
            sft += names[:1] if number % 8 == 0 else []
            test += [{"filename": name, "yt_id": name[:11]} for name in names] if number % 50 == 7 else []
        file.write("}")
    (root / "SFT_set.json").write_text(json.dumps(sft))
    (root / "testset.json").write_text(json.dumps(test))
