"""The names of the release's files: what they tell, and which are none.

A clip is `{youtube id}_{W}x{H}_full_video_{scene}_{voice}_{person}`. An id may hold `_` and begin with `-`, so a
name is never split at underscores.
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
        reason: Which kind of damage it is; a few words, the same for all of a kind.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ClipName:
    """Parts of the name of a clip.

    Attributes:
        youtube: YouTube id of the source video.
        width: Width of the source video in pixels.
        height: Height of the source video in pixels.
        scene: Number of the scene in the source video.
        voice: Diarised voice that was matched to the person: `A` (the first of the two main speakers to talk), `B`,
            another capital; `None` for a person without one; `A_None` for one beside whom A talks.
        person: Number of the person in the scene.
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
        """The name of the transcript, which has no person in it."""
        return f"{self.video}_{self.scene:03d}_{self.voice}"

    @property
    def clip(self) -> str:
        return f"{self.voiced}_{self.person:02d}"

    @property
    def speaker(self) -> str:
        """Who it is: a voice of a video is one person; whoever has none may be anybody, and is a person of his own."""
        return f"{self.youtube}_{self.voice}" if is_voice(self.voice) else self.clip


def is_voice(voice: str | None) -> bool:
    """Returns whether a voice was matched to the person: `A` and the like, not `None` or `A_None`."""
    return voice is not None and len(voice) == 1


def parse_clip(name: str) -> ClipName:
    """Raises `Damage`."""
    found = _CLIP_NAME.fullmatch(name) or _refuse(name)
    return ClipName(
        found["youtube"],
        int(found["width"]),
        int(found["height"]),
        int(found["scene"]),
        found["voice"],
        int(found["person"]),
    )


def parse_voiced(name: str) -> str:
    """The key of a transcript, with or without the person in its name; raises `Damage`."""
    found = _VOICE_NAME.fullmatch(name) or _refuse(name)
    video = f"{found['youtube']}_{int(found['width'])}x{int(found['height'])}_full_video"
    return f"{video}_{int(found['scene']):03d}_{found['voice']}"


def parse_video(name: str) -> str:
    """The key of a label of a whole video; raises `Damage`."""
    found = _VIDEO_NAME.fullmatch(name) or _refuse(name)
    return f"{found['youtube']}_{int(found['width'])}x{int(found['height'])}_full_video"


def is_video(name: str) -> bool:
    """Returns whether a name is that of a whole video."""
    return _VIDEO_NAME.fullmatch(name) is not None


def _refuse(name: str) -> NoReturn:
    raise Damage("name not in the release's form", repr(name[:120]))


def base_name(member: str) -> str:
    """The last part of a member's path. Nothing is ever written under it, but a path that climbs is a bad sign.

    Raises:
        Damage: The path is absolute, or has a `..` or a backslash in it.
    """
    parts = member.split("/")
    if member.startswith("/") or ".." in parts or "\\" in member or "\0" in member:
        raise Damage("unsafe path", repr(member[:120]))
    return parts[-1]
