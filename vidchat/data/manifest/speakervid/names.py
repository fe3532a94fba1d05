"""Parsing of the file names of the release.

A clip is named `{youtube id}_{W}x{H}_full_video_{scene}_{voice}_{person}`. An id may contain `_` and begin with `-`, so
names are never split at underscores.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

_VIDEO = r"(?P<youtube>[A-Za-z0-9_-]{11})_(?P<width>[1-9][0-9]{0,4})x(?P<height>[1-9][0-9]{0,4})_full_video"
_VOICED = _VIDEO + r"_(?P<scene>[0-9]{3,9})_(?P<voice>(?:[A-Z]_)?None|[A-Z])"
_PERSON = r"_(?P<person>[0-9]{2,9})"
_ENDING = r"(?:\.(?:json|mp4|wav))?"
_CLIP_NAME = re.compile(_VOICED + _PERSON + _ENDING)
_VOICE_NAME = re.compile(_VOICED + f"(?:{_PERSON})?" + _ENDING)
_VIDEO_NAME = re.compile(_VIDEO + _ENDING)


class Damage(ValueError):
    """A record that cannot be used.

    Attributes:
        reason: Kind of damage, in a few words that are the same for all records of the kind.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ClipName:
    """Fields of the name of a clip.

    Attributes:
        youtube: YouTube id of the source video.
        width: Width of the source video in pixels.
        height: Height of the source video in pixels.
        scene: Index of the scene in the source video.
        voice: Diarised voice that was matched to the person: `A` (the first of the two main speakers to talk), `B`,
            another capital; `None` for a person without one; `A_None` for one beside whom A talks.
        person: Index of the person in the scene.
    """

    youtube: str
    width: int
    height: int
    scene: int
    voice: str
    person: int

    @property
    def video(self) -> str:
        return f"{self.youtube}_{self.width}x{self.height}_full_video"

    @property
    def voiced(self) -> str:
        """Name of the transcript, which contains no person."""
        return f"{self.video}_{self.scene:03d}_{self.voice}"

    @property
    def clip(self) -> str:
        return f"{self.voiced}_{self.person:02d}"

    @property
    def speaker(self) -> str:
        """Name of the person: one per voice of a video; a person without a voice is unknown, and named by the clip."""
        return f"{self.youtube}_{self.voice}" if is_voice(self.voice) else self.clip


def is_voice(voice: str | None) -> bool:
    """Returns whether a voice was matched to the person: `A` and the like, not `None` or `A_None`."""
    return voice is not None and len(voice) == 1


def parse_clip(name: str) -> ClipName:
    """Returns the fields of the name of a clip; raises `Damage`."""
    match = _CLIP_NAME.fullmatch(name) or _refuse(name)
    return ClipName(
        match["youtube"],
        int(match["width"]),
        int(match["height"]),
        int(match["scene"]),
        match["voice"],
        int(match["person"]),
    )


def parse_voiced(name: str) -> str:
    """Returns the key of a transcript, with or without the person in its name; raises `Damage`."""
    match = _VOICE_NAME.fullmatch(name) or _refuse(name)
    video = f"{match['youtube']}_{int(match['width'])}x{int(match['height'])}_full_video"
    return f"{video}_{int(match['scene']):03d}_{match['voice']}"


def parse_video(name: str) -> str:
    """Returns the key of a label of a whole video; raises `Damage`."""
    match = _VIDEO_NAME.fullmatch(name) or _refuse(name)
    return f"{match['youtube']}_{int(match['width'])}x{int(match['height'])}_full_video"


def is_video(name: str) -> bool:
    """Returns whether a name is that of a whole video."""
    return _VIDEO_NAME.fullmatch(name) is not None


def _refuse(name: str) -> NoReturn:
    raise Damage("name not in the release's form", repr(name[:120]))


def base_name(member: str) -> str:
    """Returns the last component of a member's path.

    Nothing is written to this path, but a path that leaves the archive is a sign of damage.

    Raises:
        Damage: The path is absolute, or contains `..` or a backslash.
    """
    parts = member.split("/")
    if member.startswith("/") or ".." in parts or "\\" in member or "\0" in member:
        raise Damage("unsafe path", repr(member[:120]))
    return parts[-1]
