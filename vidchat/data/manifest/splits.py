"""Training, validation and test splits, so that no person and no source video is in two of them.

Videos that share a person or a media file form a group, and a group is in one split. The split depends on the group
alone, so additional data moves no existing group unless it joins two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vidchat.dialogue import Split

PRECEDENCE: tuple[Split, ...] = ("test", "val", "train")  # precedence where the source gives a group different splits
SPLIT_COLUMNS = ("clip", "video", "speaker", "media", "given_split", "in_test_list")


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the splits; people who appear together are one group, and a group is in one split.

    Attributes:
        val: Share of the groups in the validation split.
        test: Share of the groups in the test split.
        seed: Seed of the assignment of groups.
        given: Whether splits given by the source (and the release's test set) are kept.
    """

    val: float = 0.02
    test: float = 0.02
    seed: int = 0
    given: bool = True

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test <= 1):
            raise ValueError(f"val, test and their sum must be 0 to 1, not {self.val:g} and {self.test:g}")


class Groups:
    """Disjoint sets of videos (union-find), each represented by its first video in the order of names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, video: str) -> str:
        """Returns the representative of the group of a video."""
        root = video
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while (parent := self._parent[video]) != root:
            self._parent[video], video = root, parent
        return root

    def join(self, left: str, right: str) -> None:
        first, second = sorted((self.find(left), self.find(right)))
        self._parent[second] = first

    def videos(self) -> Iterable[str]:
        return self._parent


def split_videos(clips: Iterable[Mapping[str, Any]], settings: SplitSettings) -> tuple[dict[str, Split], int]:
    """Returns the split of each video, and the number of groups to which the source gives different splits."""
    groups, first_video, given_splits = Groups(), dict[tuple[str, str], str](), dict[str, set[str]]()
    for clip in clips:
        video = clip["video"]
        groups.find(video)
        # A person seen in one clip alone has the clip's name, and links no videos.
        links = [("speaker", clip["speaker"])] if clip["speaker"] != clip["clip"] else []
        for link in [*links, ("media", clip["media"])]:
            if link[1] is not None and (other := first_video.setdefault(link, video)) != video:
                groups.join(other, video)
        given = "test" if clip["in_test_list"] else clip["given_split"]
        if settings.given and given is not None:
            given_splits.setdefault(video, set()).add(given)
    by_group: dict[str, set[str]] = {}
    for video, splits in given_splits.items():
        by_group.setdefault(groups.find(video), set()).update(splits)
    torn = sum(len(splits) > 1 for splits in by_group.values())
    return {video: _choose(groups.find(video), by_group, settings) for video in list(groups.videos())}, torn


def _choose(group: str, given: Mapping[str, set[str]], settings: SplitSettings) -> Split:
    if group in given:
        return next(split for split in PRECEDENCE if split in given[group])
    digest = hashlib.blake2b(f"{settings.seed} {group}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big") / 2**64
    return "test" if draw < settings.test else "val" if draw < settings.test + settings.val else "train"
