"""Training, validation and test, so that no person and no source video is in two of them.

Videos that share a person or a media file belong together; a whole such group goes into one split. Which one depends on
the group alone, so more data does not move what is there, unless it joins two groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vidchat.dialogue import Split

WITHHELD: tuple[Split, ...] = ("test", "val", "train")  # where a group goes whose clips were given different splits
SPLIT_COLUMNS = ("clip", "video", "speaker", "media", "given_split", "in_test_list")


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the splits; people who appear together are one group, and a group is in one split.

    Attributes:
        val: Share of the groups for validation.
        test: Share of the groups for test.
        seed: Seed of the assignment of groups.
        given: Whether splits that the source gives (and the release's test set) are kept.
    """

    val: float = 0.02
    test: float = 0.02
    seed: int = 0
    given: bool = True

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test <= 1):
            raise ValueError(f"the shares of val and test must be 0 to 1 together, not {self.val:g} and {self.test:g}")


class Groups:
    """Sets of videos that must stay together."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def find(self, video: str) -> str:
        """The first video, in the order of names, of the group that a video is in."""
        root = video
        while (above := self._above.setdefault(root, root)) != root:
            root = above
        while (above := self._above[video]) != root:
            self._above[video], video = root, above
        return root

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._above[second] = first

    def videos(self) -> Iterable[str]:
        return self._above


def split_videos(clips: Iterable[Mapping[str, Any]], settings: SplitSettings) -> tuple[dict[str, Split], int]:
    """The split of each video, and the number of groups whose clips had been given different splits."""
    groups, seen, wanted = Groups(), dict[tuple[str, str], str](), dict[str, set[str]]()
    for clip in clips:
        video = clip["video"]
        groups.find(video)
        # A person of one clip only bears the clip's name (and would fill the memory).
        links = [("speaker", clip["speaker"])] if clip["speaker"] != clip["clip"] else []
        for link in [*links, ("media", clip["media"])]:
            if link[1] is not None and (other := seen.setdefault(link, video)) != video:
                groups.join(other, video)
        given = "test" if clip["in_test_list"] else clip["given_split"]
        if settings.given and given is not None:
            wanted.setdefault(video, set()).add(given)
    told: dict[str, set[str]] = {}
    for video, splits in wanted.items():
        told.setdefault(groups.find(video), set()).update(splits)
    torn = sum(len(splits) > 1 for splits in told.values())
    return {video: _choose(groups.find(video), told, settings) for video in list(groups.videos())}, torn


def _choose(group: str, told: Mapping[str, set[str]], settings: SplitSettings) -> Split:
    if group in told:
        return next(split for split in WITHHELD if split in told[group])
    digest = hashlib.blake2b(f"{settings.seed} {group}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    return "test" if place < settings.test else "val" if place < settings.test + settings.val else "train"
