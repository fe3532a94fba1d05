"""Sample dialogues of a data set as a self-contained HTML page or a contact sheet."""

from __future__ import annotations

import hashlib
import heapq
import io
import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from vidchat.data.atomic_path import atomic_path
from vidchat.data.folder import FolderError, entries, make_dialogue, manifest_of, parse_entry
from vidchat.data.media.read import Media, MediaError, frame_size, read_clip, write_clip
from vidchat.data.tokens.media_shards import MediaShards
from vidchat.data.tokens.shards import ShardError
from vidchat.data.tokens.token_folder import AudioDecoder, TokenFolder, VideoDecoder
from vidchat.dialogue import Clip, Dialogue, Turn
from vidchat.reports.page import data_url, render
from vidchat.reports.sheet import Panel, contact_sheet, strip
from vidchat.runtime.atomic import write_text

log = logging.getLogger(__name__)
HEIGHT = 160  # pixels; height of a shown frame
WIDEST = 284  # pixels; largest width of a shown frame
MOMENTS = 5  # number of frames of a strip
SECONDS = 15.0  # longest part of a clip that is shown


@dataclass(frozen=True)
class Choice:
    """Selection of dialogues to show; `None` is any."""

    branch: str | None = None
    tier: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Decoders:
    """Clips decoded from a folder's tokens, where files are missing."""

    tokens: TokenFolder
    video: VideoDecoder
    audio: AudioDecoder | None
    note = ", decoded from tokens where clips are missing"
    hint = "or tokens of all turns"

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """Returns the duration of a clip; see `TokenFolder`."""
        return self.tokens.seconds(dialogue, clip)

    def read(self, dialogue: Dialogue, clip: Clip) -> Media | None:
        """Returns a clip at the size of a shown frame, `None` if it is missing; raises `ShardError`."""
        media = self.tokens.media(dialogue, clip, self.video, self.audio)
        return None if media is None else replace(media, frames=_resize(media.frames))


@dataclass(frozen=True)
class Packed:
    """Clips read from a folder's media shards."""

    shards: MediaShards
    note = ""
    hint = "or in its media shards"

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """Returns the duration of a clip; see `MediaShards`."""
        return self.shards.seconds(dialogue, clip)

    def read(self, dialogue: Dialogue, clip: Clip) -> Media | None:
        """Returns a clip at the size of a shown frame, `None` if it is missing; raises `ShardError` or `MediaError`."""
        with self.shards.extracted(clip.path.relative_to(self.shards.root).as_posix()) as path:
            return None if path is None else _read_file(replace(clip, path=path))


def choose(root: Path, choice: Choice, count: int, seed: int, store: Packed | Decoders | None = None) -> list[Dialogue]:
    """Draws dialogues whose turns all exist, as files or in the store; the seed determines the draw.

    Raises:
        FolderError: The folder holds no data set, or none of its dialogues can be shown.
    """
    conditions = {key: value for key, value in vars(choice).items() if value is not None}
    defaults = {"branch": "dialogue", "tier": "sft", "split": "train"}
    matching, drawn = 0, list[tuple[bytes, str, object]]()
    for position, entry in entries(manifest_of(root)):
        try:
            parsed = parse_entry(entry)
            if not isinstance(parsed, dict) or any(parsed.get(k, defaults[k]) != v for k, v in conditions.items()):
                continue
        except ValueError:
            continue
        matching += 1
        rank = hashlib.blake2b(f"{seed} {parsed.get('id')}".encode("utf-8", "replace"), digest_size=8).digest()
        heapq.heappush(drawn, (bytes(255 - b for b in rank), position, parsed))
        if len(drawn) > 100 * count:
            heapq.heappop(drawn)
    chosen: list[Dialogue] = []
    for _, _, parsed in sorted(drawn, key=lambda candidate: candidate[0], reverse=True):
        try:
            chosen.append(_require_turns(root, parsed, store))
        except MediaError as error:
            log.warning("skipped: %s", error)
            continue
        except (ValueError, TypeError, OSError):  # most often, its files do not exist
            continue
        if len(chosen) == count:
            break
    if not chosen:
        selection = ", ".join(f"{key} {value}" for key, value in conditions.items()) or "any kind"
        missing = "none of those tried has its files here; cut them with 'vidchat data cut'"
        if store is not None:
            missing = f"none of those tried has its files here, {store.hint}"
        why = missing if matching else "there is none"
        raise FolderError(f"{root}: no dialogue of {selection} can be shown: {why}")
    return chosen


def _require_turns(root: Path, entry: object, store: Packed | Decoders | None) -> Dialogue:
    """Returns the dialogue; raises `ValueError` if a turn exists neither as a file nor in the store."""
    dialogue = make_dialogue(root, entry, media=store is None)
    for clip in (turn.clip for turn in dialogue.turns):
        if store is not None and not clip.path.is_file() and store.seconds(dialogue, clip) is None:
            raise ValueError(f"{clip.path}: does not exist, {store.hint}")
    return dialogue


def show(
    root: Path,
    output: Path,
    choice: Choice,
    count: int = 5,
    seed: int = 0,
    store: Packed | Decoders | None = None,
) -> int:
    """Writes a page (`.html`) or a contact sheet (`.png`); returns the number of dialogues on it."""
    dialogues = choose(root, choice, count, seed, store)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() in (".png", ".jpg"):
        sheet = _sheet(dialogues, store)
        with atomic_path(output) as partial:
            sheet.save(partial, format="PNG" if output.suffix.lower() == ".png" else "JPEG")
    else:
        write_text(output, _page(root, dialogues, store))
    return len(dialogues)


def _read(dialogue: Dialogue, clip: Clip, store: Packed | Decoders | None) -> Media | None:
    """Returns a clip from its file or the store; `None` with a warning in the log if it cannot be read."""
    try:
        if store is not None and not clip.path.is_file():
            return store.read(dialogue, clip)
        return _read_file(clip)
    except (MediaError, ShardError) as error:
        log.warning("cannot be shown: %s", error)
        return None


def _read_file(clip: Clip) -> Media:
    height, width = frame_size(clip.path)
    size = (HEIGHT, min(WIDEST, max(2, round(HEIGHT * width / height / 2) * 2)))
    try:
        return read_clip(clip, fps=25, size=size, sample_rate=16000, max_seconds=SECONDS)
    except MediaError:
        return read_clip(clip, fps=25, size=size, sample_rate=16000, max_seconds=SECONDS, audio=False)


def _resize(frames: Tensor) -> Tensor:
    """Resizes frames (N, 3, H, W) uint8 to the height of a shown frame."""
    width = max(2, round(HEIGHT * frames.shape[3] / frames.shape[2] / 2) * 2)
    return interpolate(frames.float(), (HEIGHT, width), mode="bilinear", antialias=True).round().byte()


def _title(dialogue: Dialogue) -> str:
    return f"{dialogue.id}   ({dialogue.branch}, {dialogue.tier}, {dialogue.split})"


def _note(turn: Turn) -> str:
    clip, start = turn.clip, "" if turn.start is None else f"at {turn.start:.1f} s"
    duration = "" if clip.end is None else f"{clip.end - clip.start:.1f} s"
    scores = ", ".join(f"{name} {value:.2f}" for name, value in clip.scores.items())
    return "  ".join(text for text in (start, duration, scores) if text)


def _page(root: Path, dialogues: list[Dialogue], store: Packed | Decoders | None) -> str:
    title = f"{len(dialogues)} dialogues of {root.name or root}{'' if store is None else store.note}"
    shown = [
        {"title": _title(dialogue), "turns": [_turn(dialogue, turn, store) for turn in dialogue.turns]}
        for dialogue in dialogues
    ]
    return render("dialogues.html", title=title, dialogues=shown)


def _turn(dialogue: Dialogue, turn: Turn, store: Packed | Decoders | None) -> dict[str, str | None]:
    clip, media = turn.clip, _read(dialogue, turn.clip, store)
    words = {"role": turn.role, "speaker": clip.speaker, "note": _note(turn), "text": clip.text}
    return {**words, "video": None, "strip": None} if media is None else {**words, **_embedded(media)}


def _embedded(media: Media) -> dict[str, str]:
    """Returns the clip and a strip of its frames as data URLs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, media.frames, media.waveform, media.fps, media.sample_rate)
        video = data_url(path.read_bytes(), "video/mp4")
    buffer = io.BytesIO()
    Image.fromarray(strip(media.frames, MOMENTS)).save(buffer, "JPEG", quality=85)
    return {"video": video, "strip": data_url(buffer.getvalue(), "image/jpeg")}


def _sheet(dialogues: list[Dialogue], store: Packed | Decoders | None) -> Image.Image:
    """Draws a row of frames for each turn, below its text."""
    rows = []
    for dialogue in dialogues:
        rows.append([Panel(_title(dialogue))])
        for turn in dialogue.turns:
            media = _read(dialogue, turn.clip, store)
            words = f"{turn.role} {turn.clip.speaker}: {turn.clip.text or ''}   {_note(turn)}"
            rows.append([Panel(words, None if media is None else strip(media.frames, MOMENTS))])
    return contact_sheet(rows)
