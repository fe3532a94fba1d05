"""The manifest: one Parquet file with a row per clip, for every kind of source.

Rows of one source video are adjacent and in order of time. The file holds no time stamp or path of its making, so that
equal annotations give equal bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from vidchat.data.atomic_path import atomic_path, remove_partials

SPEECH = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("speaker", pa.string())]))
TIMED_WORDS = pa.list_(pa.struct([("text", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())]))

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "clip": (pa.string(), "unique name of the clip and of the file that is cut"),
    "source": (pa.string(), "kind of source: speakervid, seamless_interaction or folder"),
    "video": (pa.string(), "source video or conversation, whose clips share one time line"),
    "media": (pa.string(), "media file, relative to the folder of source media; null: looked up by video"),
    "speaker": (pa.string(), "person who is seen; equal names are one person"),
    "voice": (pa.string(), "diarised voice: A, B, ...; None or A_None for a person whose voice is not heard"),
    "person": (pa.int32(), "index of the person in the scene"),
    "scene": (pa.int32(), "index of the scene in the video"),
    "listens": (pa.bool_(), "true where the source states that the person is silent; else null"),
    "start_s": (pa.float64(), "start of the clip in the source video, seconds"),
    "end_s": (pa.float64(), "end of the clip in the source video, seconds"),
    "duration_s": (pa.float64(), "end minus start, seconds"),
    "track_start_s": (pa.float64(), "start of the person's track in the source video, seconds"),
    "track_end_s": (pa.float64(), "end of the person's track in the source video, seconds"),
    "frames": (pa.int32(), "number of frames at 25 fps, as the release counts them"),
    "x1": (pa.float64(), "left edge of the person's box, as a share of the frame's width"),
    "y1": (pa.float64(), "upper edge, as a share of the frame's height"),
    "x2": (pa.float64(), "right edge, as a share of the frame's width"),
    "y2": (pa.float64(), "lower edge, as a share of the frame's height"),
    "width": (pa.int32(), "width of the source video, pixels"),
    "height": (pa.int32(), "height of the source video, pixels"),
    "crop_width": (pa.int32(), "width of the box, pixels"),
    "crop_height": (pa.int32(), "height of the box, pixels"),
    "text": (pa.string(), "transcript"),
    "language": (pa.string(), "language of the text, as Whisper names it"),
    "words": (pa.int32(), "number of words of the text, separated by spaces"),
    "timed_words": (TIMED_WORDS, "words or segments of the text, seconds from the clip's start; null without times"),
    "asr_confidence": (pa.float64(), "mean log probability of the transcript's tokens"),
    "asr_no_speech": (pa.float64(), "probability that nobody talks, 0 to 1"),
    "asr_compression": (pa.float64(), "compression ratio of the transcript; high for repetitions"),
    "sync_confidence": (pa.float64(), "SyncNet's confidence for this person and the best-matching voice"),
    "sync_distance": (pa.float64(), "SyncNet's distance for that voice"),
    "sync_offset_frames": (pa.float64(), "SyncNet's offset for that voice, frames at 25 fps"),
    "other_sync_confidence": (pa.float64(), "best SyncNet confidence of another person in the scene"),
    "matched_confidence": (pa.float64(), "SyncNet's confidence for the matched voice; 0 for none"),
    "voices_matched": (pa.int32(), "number of people in the scene with a matched voice"),
    "dover": (pa.float64(), "DOVER's fused video quality, 0 to 1"),
    "clarity": (pa.float64(), "bit rate over the square root of the number of pixels, bit/s"),
    "motion": (pa.float64(), "amount of the person's motion, 1 to 5"),
    "face_blur": (pa.float64(), "mean sharpness of the face; higher is sharper"),
    "hand_blur": (pa.float64(), "mean sharpness of the hands; higher is sharper"),
    "topic": (pa.string(), "topic of the conversation"),
    "caption": (pa.string(), "description of what is seen"),
    "people": (pa.int32(), "number of people in view"),
    "facing": (pa.string(), "direction that the person faces"),
    "body_view": (pa.string(), "visible part of the body"),
    "camera_motion": (pa.string(), "motion of the camera"),
    "annotation": (pa.string(), "complete structured caption, JSON"),
    "speech": (SPEECH, "diarised speech within the clip, seconds from its start; null without diarisation"),
    "in_all_list": (pa.bool_(), "named in all_data_list.json"),
    "in_sft_list": (pa.bool_(), "named in SFT_set.json"),
    "in_test_list": (pa.bool_(), "named in testset.json"),
    "dialogue": (pa.string(), "dialogue that the clip is a turn of, where the source has dialogues"),
    "turn": (pa.int32(), "index of the turn in that dialogue, from 0"),
    "role": (
        pa.string(),
        "initiator or responder in that dialogue; null: the turns are exchanged, each is a responder once",
    ),
    "at_s": (pa.float64(), "start of the turn on that dialogue's clock, seconds; null: directly after the turn before"),
    "given_branch": (pa.string(), "branch, where the source gives it"),
    "given_tier": (pa.string(), "tier, where the source gives it"),
    "given_split": (pa.string(), "train, val or test, where the source gives it"),
    "more_scores": (pa.string(), "scores without a column, JSON object of numbers"),
    "truth": (pa.string(), "ground truth of a rendered clip, JSON object"),
}
SCHEMA = pa.schema([pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in COLUMNS.items()])
SCORES = ("asr_confidence", "sync_confidence", "dover", "clarity", "motion", "face_blur", "hand_blur")
"""Columns that become the scores of a clip."""
ROWS = 20_000  # rows of a row group, which a reader holds at a time


class ManifestError(ValueError):
    """A manifest that cannot be used; the message says what to do."""


def open_manifest(path: Path) -> pq.ParquetFile:
    """Opens a manifest, or that of a data folder; raises `ManifestError`."""
    if path.is_dir():
        path = path / "clips.parquet"
    if not path.is_file():
        raise ManifestError(f"{path}: there is no such manifest; make one with 'vidchat data ingest'")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ManifestError(
            f"{path}: is not a Parquet file ({error}); make it again with 'vidchat data ingest'"
        ) from None
    lacking = [name for name in ("clip", "video", "start_s", "end_s") if name not in file.schema_arrow.names]
    if lacking:
        raise ManifestError(f"{path}: has no column {lacking[0]}; make it with 'vidchat data ingest'")
    return file


def rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the given columns of the clips one by one; one row group is held in memory.

    Raises:
        ManifestError: The manifest cannot be read or lacks a column.
    """
    with open_manifest(path) as file:
        if lacking := [name for name in columns if name not in file.schema_arrow.names]:
            raise ManifestError(f"{path}: has no column {lacking[0]}; make it again with 'vidchat data ingest'")
        for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
            yield from batch.to_pylist()


def videos(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields the clips of each source video, in order of time."""
    names = list(dict.fromkeys(["video", *columns]))
    for _, clips in groupby(rows(path, names), key=lambda row: row["video"]):
        yield list(clips)


def write_manifest(path: Path, tables: Iterable[pa.Table]) -> int:
    """Writes tables with the manifest's columns, atomically; returns the number of clips."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path)
    clips = 0
    pending: list[pa.Table] = []
    with atomic_path(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            clips += table.num_rows
            pending.append(table)
            if sum(t.num_rows for t in pending) >= ROWS:
                _flush(writer, pending)
        _flush(writer, pending)
    return clips


def _flush(writer: pq.ParquetWriter, pending: list[pa.Table]) -> None:
    if pending:
        writer.write_table(pa.concat_tables(pending), row_group_size=ROWS)
        pending.clear()


def as_table(clips: list[dict[str, Any]]) -> pa.Table:
    """Returns rows as a table of all columns; columns that a row lacks are null."""
    return pa.Table.from_pylist(clips, schema=SCHEMA)


def sorted_rows(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows in the manifest's order."""
    return sorted(clips, key=lambda r: (r["video"], r["start_s"], r.get("scene") or 0, r["clip"]))


def clip_window(clip: Mapping[str, Any], window: Literal["scene", "track"]) -> tuple[float, float]:
    """Returns the start and end of a clip, or of the person's track in it, in seconds of its source."""
    scene = clip["start_s"], clip["end_s"]
    if window == "scene" or None in (clip["track_start_s"], clip["track_end_s"]):
        return scene
    track = max(scene[0], clip["track_start_s"]), min(scene[1], clip["track_end_s"])
    return track if track[0] < track[1] else scene  # a track outside of the scene is an error of the source


def clip_file(clip: str, video: str, voice_only: bool = False) -> str:
    """Returns the path of a cut clip in the data folder, `clips/<000..999>/<clip>.mp4`.

    The numbered folders keep each one below millions of files.

    Args:
        clip: Name of the clip.
        video: Name of its source video.
        voice_only: Whether the file holds only the voice that is heard in the clip, without the person who is seen.

    Raises:
        ManifestError: The name is not a plain file name.
    """
    if not clip or "/" in clip or "\\" in clip or "\0" in clip or clip.startswith("."):
        raise ManifestError(f"the clip's name {clip!r} is no file name; correct it in the source and ingest again")
    return f"clips/{zlib.crc32(video.encode()) % 1000:03d}/{clip}{'~voice' if voice_only else ''}.mp4"
