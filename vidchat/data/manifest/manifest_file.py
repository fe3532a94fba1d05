"""The manifest: one Parquet file with a row for every clip, whatever source it came from.

Rows of one source video stand together, in order of time. Nothing in the file tells when or where it was made, so that
equal annotations give equal bytes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vidchat.data.atomic_path import atomic_path, remove_partials

SPEECH = pa.list_(pa.struct([("start_s", pa.float64()), ("end_s", pa.float64()), ("speaker", pa.string())]))

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "clip": (pa.string(), "name of the clip, unique; the cut file is called so"),
    "source": (pa.string(), "what it was read from: speakervid, seamless_interaction or folder"),
    "video": (pa.string(), "the source video or conversation, whose clips share one time line"),
    "media": (pa.string(), "the file that holds it, relative to the folder of source media; null: found by video"),
    "speaker": (pa.string(), "who is seen; equal names are one person"),
    "voice": (pa.string(), "diarised voice: A, B, ...; None or A_None for a person whose voice is not heard"),
    "person": (pa.int32(), "number of the person in the scene"),
    "scene": (pa.int32(), "number of the scene in the video"),
    "listens": (pa.bool_(), "true where the source itself knows that the person is silent; else null"),
    "start_s": (pa.float64(), "where the clip begins in the source video, seconds"),
    "end_s": (pa.float64(), "where it ends, seconds"),
    "duration_s": (pa.float64(), "end minus start, seconds"),
    "track_start_s": (pa.float64(), "from where the person is tracked, seconds of the source video"),
    "track_end_s": (pa.float64(), "to where the person is tracked, seconds of the source video"),
    "frames": (pa.int32(), "frames at 25 fps, as the release counts them"),
    "x1": (pa.float64(), "left edge of the person's box, as a share of the frame's width"),
    "y1": (pa.float64(), "upper edge, as a share of the height"),
    "x2": (pa.float64(), "right edge, as a share of the width"),
    "y2": (pa.float64(), "lower edge, as a share of the height"),
    "width": (pa.int32(), "of the source frame, pixels"),
    "height": (pa.int32(), "of the source frame, pixels"),
    "crop_width": (pa.int32(), "of the box, pixels"),
    "crop_height": (pa.int32(), "of the box, pixels"),
    "text": (pa.string(), "what is said"),
    "language": (pa.string(), "of the text, as Whisper calls it"),
    "words": (pa.int32(), "of the text, counted between spaces"),
    "asr_confidence": (pa.float64(), "mean log probability of the transcript's tokens"),
    "asr_no_speech": (pa.float64(), "probability that nobody talks, 0 to 1"),
    "asr_compression": (pa.float64(), "compression ratio of the transcript; high when it repeats itself"),
    "sync_confidence": (pa.float64(), "SyncNet's confidence for this person and the voice that fits best"),
    "sync_distance": (pa.float64(), "SyncNet's distance for that voice"),
    "sync_offset_frames": (pa.float64(), "SyncNet's offset for that voice, frames at 25 fps"),
    "other_sync_confidence": (pa.float64(), "the best confidence of another person in the scene"),
    "matched_confidence": (pa.float64(), "confidence of the voice that was matched; 0 for none"),
    "voices_matched": (pa.int32(), "people in the scene that a voice was matched to"),
    "dover": (pa.float64(), "DOVER's fused quality of the frame, 0 to 1"),
    "clarity": (pa.float64(), "bit rate over the root of the pixels, bit/s"),
    "motion": (pa.float64(), "how much the person moves, 1 to 5"),
    "face_blur": (pa.float64(), "mean sharpness of the face; the higher the sharper"),
    "hand_blur": (pa.float64(), "mean sharpness of the hands; the higher the sharper"),
    "topic": (pa.string(), "what the talk is about"),
    "caption": (pa.string(), "what is seen"),
    "people": (pa.int32(), "people in the frame"),
    "facing": (pa.string(), "where the person looks"),
    "body_view": (pa.string(), "how much of the body is seen"),
    "camera_motion": (pa.string(), "how the camera moves"),
    "annotation": (pa.string(), "the whole structured caption, JSON"),
    "speech": (SPEECH, "who talks when within the clip, seconds from its beginning; null where nobody listened"),
    "in_all_list": (pa.bool_(), "named in all_data_list.json"),
    "in_sft_list": (pa.bool_(), "named in SFT_set.json"),
    "in_test_list": (pa.bool_(), "named in testset.json"),
    "dialogue": (pa.string(), "the dialogue it is a turn of, where the source has dialogues"),
    "turn": (pa.int32(), "its place in that dialogue, from 0"),
    "role": (pa.string(), "initiator or responder in that dialogue"),
    "given_branch": (pa.string(), "branch, where the source tells it"),
    "given_tier": (pa.string(), "tier, where the source tells it"),
    "given_split": (pa.string(), "train, val or test, where the source tells it"),
    "more_scores": (pa.string(), "scores that have no column, JSON object of numbers"),
    "truth": (pa.string(), "what else is known exactly of a rendered clip, JSON object"),
}
SCHEMA = pa.schema([pa.field(name, kind, metadata={"about": about}) for name, (kind, about) in COLUMNS.items()])
SCORES = ("asr_confidence", "sync_confidence", "dover", "clarity", "motion", "face_blur", "hand_blur")
"""Columns that travel with a clip as its scores."""
ROWS = 20_000  # of a row group: what a reader holds at a time


class ManifestError(ValueError):
    """A manifest that cannot be read, and what to do about it, in one sentence."""


def open_manifest(path: Path) -> pq.ParquetFile:
    """Opens a manifest, or the one in a data folder; raises `ManifestError`."""
    if path.is_dir():
        path = path / "clips.parquet"
    if not path.is_file():
        raise ManifestError(f"{path}: there is no such manifest; make it with 'vidchat data ingest'")
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
    """Yields the clips one by one, with these columns; memory holds one row group."""
    with open_manifest(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
            yield from batch.to_pylist()


def videos(path: Path, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yields the clips of one source video after another, in order of time."""
    wanted = list(dict.fromkeys(["video", *columns]))
    for _, clips in groupby(rows(path, wanted), key=lambda row: row["video"]):
        yield list(clips)


def write_manifest(path: Path, tables: Iterable[pa.Table]) -> int:
    """Writes tables of the manifest's columns one after another, whole or not at all; returns the number of clips."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partials(path)
    clips = 0
    waiting: list[pa.Table] = []
    with atomic_path(path) as partial, pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for table in tables:
            clips += table.num_rows
            waiting.append(table)
            if sum(t.num_rows for t in waiting) >= ROWS:
                _flush(writer, waiting)
        _flush(writer, waiting)
    return clips


def _flush(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
    if waiting:
        writer.write_table(pa.concat_tables(waiting), row_group_size=ROWS)
        waiting.clear()


def as_table(clips: list[dict[str, Any]]) -> pa.Table:
    """Returns rows as a table of all columns; a column that a row lacks is null there."""
    return pa.Table.from_pylist(clips, schema=SCHEMA)


def sorted_rows(clips: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows in the manifest's order."""
    return sorted(clips, key=lambda r: (r["video"], r["start_s"], r.get("scene") or 0, r["clip"]))


def clip_file(clip: str, video: str, voice_only: bool = False) -> str:
    """Returns the path of a cut clip in the data folder: `clips/<000..999>/<clip>.mp4`, so that no folder has millions.

    Args:
        clip: Name of the clip.
        video: Name of its source video.
        voice_only: Whether to name the file with the voice that is heard in the clip, without the person who is seen.

    Raises:
        ManifestError: The name could lead elsewhere.
    """
    if not clip or "/" in clip or "\\" in clip or "\0" in clip or clip.startswith("."):
        raise ManifestError(f"the clip's name {clip!r} is no file name; correct it in the source and ingest again")
    return f"clips/{zlib.crc32(video.encode()) % 1000:03d}/{clip}{'~voice' if voice_only else ''}.mp4"
