"""An annotation folder in the release's layout, of clips that do not exist: for tests, benchmarks and a first try.

Every video has a generator of its own, so that any archive of any kind can be written without the others. Archives of
different kinds hold different videos, as the release's do.
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

SCENES = 8  # of a video
WORDS = ("yes", "no", "well", "the", "a", "we", "you", "think", "tea", "rain", "music", "work", "then", "people")
TOPICS = ("music", "sport", "politics", "film", "science", "food", "travel", "business")
SIZES = ((1920, 1080), (1280, 720), (3840, 2160), (640, 360))
CAST = (("A",), ("B",), ("A", "A_None"), ("B", "B_None"), ("A", "B"), ("None",))  # who is seen in a scene
OTHER = {"A": "B", "B": "A"}


@dataclass(frozen=True)
class Video:
    """A source video.

    Attributes:
        clips: Each with its scene's start and end in seconds and the voices heard in it.
        speech: (start, end, voice), seconds.
    """

    key: str
    clips: list[tuple[ClipName, float, float, list[str]]]
    speech: list[tuple[float, float, str]]


def video(seed: int, number: int) -> Video:
    """The video of this number: always the same."""
    rng = random.Random(f"{seed} {number}")
    youtube = "".join(rng.choices(string.ascii_letters + string.digits + "-_", k=11))
    width, height = rng.choices(SIZES, (80, 15, 3, 2))[0]
    clips, speech, time, told = [], [], round(rng.uniform(0, 30), 3), rng.choice("AB")
    for scene in range(SCENES):
        length = round(rng.uniform(3, 14), 3)
        seen = rng.choices(CAST, (30, 30, 10, 10, 10, 10))[0]
        heard = [voice for voice in seen if is_voice(voice)] or [OTHER[told]]
        told = heard[-1]
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
    """Writes the folder; returns (kind, record, damage) of what was damaged.

    Args:
        root: The folder.
        clips: About how many.
        archives: Of each kind (of `merged_anno` one less is there than the names say, as in the release).
        seed: Everything follows from it.
        damage_every: One record of so many is damaged, in the ways of `damage.WAYS`; `None` damages none.
        workers: Processes.
    """
    videos = max(1, round(clips / (SCENES * 1.3)))
    root.mkdir(parents=True, exist_ok=True)
    jobs = [(kind, archive) for kind in KINDS for archive in range(archives)]
    job = partial(_archive, root=root, videos=videos, archives=archives, seed=seed, damage_every=damage_every)
    damaged: list[tuple[str, str, str]] = []
    for found in parallel_map(job, jobs, workers):
        damaged += found
    _lists(root, videos, seed)
    return sorted(damaged)


def _archive(
    which: tuple[str, int], root: Path, videos: int, archives: int, seed: int, damage_every: int | None
) -> list[tuple[str, str, str]]:
    from tests.speakervid.damage import members

    kind, archive = which
    folder = root / kind if kind == "merged_anno" else root / "raw_labels" / kind
    folder.mkdir(parents=True, exist_ok=True)
    rng, damaged = random.Random(f"{seed} {kind} {archive}"), []
    with tarfile.open(folder / f"tar_batch_{archive}.tar.gz", "w:gz", compresslevel=1) as tar:
        for number in range(videos):
            if zlib.crc32(f"{kind} {number}".encode()) % archives != archive:
                continue
            for name, data in records(kind, video(seed, number), random.Random(f"{seed} {kind} {number}")):
                found = [(tarfile.TarInfo(f"{kind}/{name}.json"), data)]
                if damage_every and rng.randrange(damage_every) == 0:
                    way, found = members(kind, name, data, rng)
                    damaged.append((kind, name, way))
                for info, content in found:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return damaged


def records(kind: str, video: Video, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(name, JSON) of a video's records of a kind."""
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
    told = [f"({start}, {end})" for start, end in times.values()]
    scenes = {f"scene_{n:03d}": {"start_seconds": start, "end_seconds": end} for n, (start, end) in times.items()}
    return {"org_scene_list": told, "scene_list": told, **scenes}


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
    """The three lists, each in a shape of its own. Videos can be so many that the list is written one by one."""
    sft, test = [], []
    with (root / "all_data_list.json").open("w", encoding="utf-8") as file:
        file.write("{")
        for number in range(videos):
            found = video(seed, number)
            names = [f"{clip.clip}.json" for clip, *_ in found.clips]
            file.write(f"{', ' if number else ''}{json.dumps(found.key)}: {json.dumps(names)}")
            sft += names[:1] if number % 8 == 0 else []
            test += [{"filename": name, "yt_id": name[:11]} for name in names] if number % 50 == 7 else []
        file.write("}")
    (root / "SFT_set.json").write_text(json.dumps(sft))
    (root / "testset.json").write_text(json.dumps(test))
