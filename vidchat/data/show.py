"""Some dialogues of a data set to look at: one page that needs no other file, or one frame."""

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
HEIGHT = 160  # pixels of a shown frame
WIDEST = 284
MOMENTS = 5
SECONDS = 15.0  # of a clip that are shown


@dataclass(frozen=True)
class Choice:
    """Which dialogues may be shown; `None` is any."""

    branch: str | None = None
    tier: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Decoders:
    """What shows a folder's tokens where its clips are not there."""

    tokens: TokenFolder
    video: VideoDecoder
    audio: AudioDecoder | None
    told = ", decoded from tokens where clips are not there"
    lacking = "or tokens of all its turns"

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """See `TokenFolder`."""
        return self.tokens.seconds(dialogue, clip)

    def read(self, dialogue: Dialogue, clip: Clip) -> Media | None:
        """A clip at the size of a shown frame; `None` where it is not there. Raises `ShardError`."""
        media = self.tokens.media(dialogue, clip, self.video, self.audio)
        return None if media is None else replace(media, frames=_shown_size(media.frames))


@dataclass(frozen=True)
class Packed:
    """What shows a folder's clips that lie in media shards."""

    shards: MediaShards
    told = ""
    lacking = "or in its media shards"

    def seconds(self, dialogue: Dialogue, clip: Clip) -> float | None:
        """See `MediaShards`."""
        return self.shards.seconds(dialogue, clip)

    def read(self, dialogue: Dialogue, clip: Clip) -> Media | None:
        """A clip at the size of a shown frame; `None` where it is not there. Raises `ShardError` or `MediaError`."""
        with self.shards.extracted(clip.path.relative_to(self.shards.root).as_posix()) as path:
            return None if path is None else _read_file(replace(clip, path=path))


def choose(
    root: Path, choice: Choice, count: int, seed: int, elsewhere: Packed | Decoders | None = None
) -> list[Dialogue]:
    """Some dialogues of which every turn is there, as a file or elsewhere; the same for the same seed.

    Raises:
        FolderError: There is no data set, or none of its dialogues can be shown.
    """
    wanted = {key: value for key, value in vars(choice).items() if value is not None}
    defaults = {"branch": "dialogue", "tier": "sft", "split": "train"}
    matching, drawn = 0, list[tuple[bytes, str, object]]()
    for where, entry in entries(manifest_of(root)):
        try:
            parsed = parse_entry(entry)
            if not isinstance(parsed, dict) or any(parsed.get(k, defaults[k]) != v for k, v in wanted.items()):
                continue
        except ValueError:
            continue
        matching += 1
        lot = hashlib.blake2b(f"{seed} {parsed.get('id')}".encode("utf-8", "replace"), digest_size=8).digest()
        heapq.heappush(drawn, (bytes(255 - b for b in lot), where, parsed))
        if len(drawn) > 100 * count:
            heapq.heappop(drawn)
    found: list[Dialogue] = []
    for _, _, parsed in sorted(drawn, key=lambda one: one[0], reverse=True):
        try:
            found.append(_there(root, parsed, elsewhere))
        except MediaError as error:
            log.warning("skipped: %s", error)
            continue
        except (ValueError, TypeError, OSError):  # most often its files are not here
            continue
        if len(found) == count:
            break
    if not found:
        told = ", ".join(f"{key} {value}" for key, value in wanted.items()) or "any kind"
        lacking = "none of those looked at has its files here; cut them with 'vidchat data cut'"
        if elsewhere is not None:
            lacking = f"none of those looked at has its files here, {elsewhere.lacking}"
        why = lacking if matching else "there is none"
        raise FolderError(f"{root}: no dialogue of {told} can be shown: {why}")
    return found


def _there(root: Path, entry: object, elsewhere: Packed | Decoders | None) -> Dialogue:
    """Raises `ValueError` where a turn can be shown neither from a file nor from elsewhere."""
    dialogue = make_dialogue(root, entry, media=elsewhere is None)
    for clip in (turn.clip for turn in dialogue.turns):
        if elsewhere is not None and not clip.path.is_file() and elsewhere.seconds(dialogue, clip) is None:
            raise ValueError(f"{clip.path}: is not there, {elsewhere.lacking}")
    return dialogue


def show(
    root: Path,
    output: Path,
    choice: Choice,
    count: int = 5,
    seed: int = 0,
    elsewhere: Packed | Decoders | None = None,
) -> int:
    """Writes a page (`.html`) or a contact sheet (`.png`); returns the number of dialogues on it."""
    dialogues = choose(root, choice, count, seed, elsewhere)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix.lower() in (".png", ".jpg"):
        sheet = _sheet(dialogues, elsewhere)
        with atomic_path(output) as partial:
            sheet.save(partial, format="PNG" if output.suffix.lower() == ".png" else "JPEG")
    else:
        write_text(output, _spatial_context(root, dialogues, elsewhere))
    return len(dialogues)


def _read(dialogue: Dialogue, clip: Clip, elsewhere: Packed | Decoders | None) -> Media | None:
    """A clip, from its file or from elsewhere; `None` where it cannot be had, which is told in the log."""
    try:
        if elsewhere is not None and not clip.path.is_file():
            return elsewhere.read(dialogue, clip)
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


def _shown_size(frames: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 at the height of a shown frame."""
    width = max(2, round(HEIGHT * frames.shape[3] / frames.shape[2] / 2) * 2)
    return interpolate(frames.float(), (HEIGHT, width), mode="bilinear", antialias=True).round().byte()


def _title(dialogue: Dialogue) -> str:
    return f"{dialogue.id}   ({dialogue.branch}, {dialogue.tier}, {dialogue.split})"


def _told(clip: Clip) -> str:
    end = "" if clip.end is None else f"{clip.end - clip.start:.1f} s"
    scores = ", ".join(f"{name} {value:.2f}" for name, value in clip.scores.items())
    return "  ".join(part for part in (end, scores) if part)


def _spatial_context(root: Path, dialogues: list[Dialogue], elsewhere: Packed | Decoders | None) -> str:
    title = f"{len(dialogues)} dialogues of {root.name or root}{'' if elsewhere is None else elsewhere.told}"
    shown = [
        {"title": _title(dialogue), "turns": [_turn(dialogue, turn, elsewhere) for turn in dialogue.turns]}
        for dialogue in dialogues
    ]
    return render("dialogues.html", title=title, dialogues=shown)


def _turn(dialogue: Dialogue, turn: Turn, elsewhere: Packed | Decoders | None) -> dict[str, str | None]:
    clip, media = turn.clip, _read(dialogue, turn.clip, elsewhere)
    words = {"role": turn.role, "speaker": clip.speaker, "note": _told(clip), "text": clip.text}
    return {**words, "video": None, "strip": None} if media is None else {**words, **_embedded(media)}


def _embedded(media: Media) -> dict[str, str]:
    """The clip and some of its frames as URLs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_clip(path, media.frames, media.waveform, media.fps, media.sample_rate)
        video = data_url(path.read_bytes(), "video/mp4")
    buffer = io.BytesIO()
    Image.fromarray(strip(media.frames, MOMENTS)).save(buffer, "JPEG", quality=85)
    return {"video": video, "strip": data_url(buffer.getvalue(), "image/jpeg")}


def _sheet(dialogues: list[Dialogue], elsewhere: Packed | Decoders | None) -> Image.Image:
    """A row of frames for each turn, under its words."""
    rows = []
    for dialogue in dialogues:
        rows.append([Panel(_title(dialogue))])
        for turn in dialogue.turns:
            media = _read(dialogue, turn.clip, elsewhere)
            words = f"{turn.role} {turn.clip.speaker}: {turn.clip.text or ''}   {_told(turn.clip)}"
            rows.append([Panel(words, None if media is None else strip(media.frames, MOMENTS))])
    return contact_sheet(rows)
