"""Sizes of the true answers, from which the size at which a benchmark is scored is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from vidchat.bench.pairs import Pair, PairsError
from vidchat.data.media.read import MediaError, frame_size
from vidchat.dialogue import Clip
from vidchat.runtime.sizes import format_size


def commonest_size(clips: Iterable[Clip]) -> tuple[int, int]:
    """Returns the commonest size (height, width) of some clips; if several are as common, the smallest."""
    sizes = Counter(frame_size(clip.path) for clip in clips)
    return min(sizes, key=lambda size: (-sizes[size], size[0] * size[1], size))


def truth_sizes(pairs: Iterable[Pair]) -> Mapping[tuple[int, int], list[str]]:
    """Returns the sizes (height, width) of the true answers that can be opened, each with the ids of its pairs."""
    sizes: dict[tuple[int, int], list[str]] = {}
    for pair in pairs:
        try:
            sizes.setdefault(frame_size(pair.truth.path), []).append(pair.id)
        except (MediaError, OSError):
            continue  # scoring reports it
    return sizes


def only_size(pairs: Iterable[Pair]) -> tuple[int, int]:
    """Returns the only size (height, width) of the true answers.

    Raises:
        PairsError: They have several sizes, or none can be opened.
    """
    sizes = truth_sizes(pairs)
    if len(sizes) == 1:
        return next(iter(sizes))
    if not sizes:
        raise PairsError("no true answer can be opened, so there is nothing to compare with; check the files' folder")
    counts = "; ".join(f"{format_size(size)}: {len(ids)}, such as {ids[0]}" for size, ids in sizes.items())
    raise PairsError(f"the true answers have several sizes ({counts}); give size=HEIGHTxWIDTH for all")
