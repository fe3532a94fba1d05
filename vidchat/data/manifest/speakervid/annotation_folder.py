"""Units of work of an annotation folder: archives, extracted folders and lists."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

KINDS = ("merged_anno", "asr", "anno", "l_score", "scene_json", "speaker_json")
LISTS = {"all_data_list.json": "all_list", "SFT_set.json": "sft_list", "testset.json": "test_list"}
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FILES_A_UNIT = 50_000  # largest number of files of an extracted folder in one unit


class LayoutError(ValueError):
    """A folder without the expected annotations; the message says what to do."""


@dataclass(frozen=True, order=True)
class Unit:
    """An archive, a part of an extracted folder, or a list, which one process reads at a time.

    Attributes:
        kind: Kind of the records: `merged_anno`, `asr`, ...; `all_list`, ... for a list.
        path: Path relative to the annotation folder, with `/`.
        part: Index of the part among the folder's `parts` parts.
        parts: Number of parts; 1 for an archive or a list.
        stamp: Text that changes when the archive, list or folder does.
        size: Number of bytes, or of files of a folder; determines the order of work.
    """

    kind: str
    path: str
    part: int
    parts: int
    stamp: str
    size: int

    @property
    def id(self) -> str:
        """Returns a file name that is unique among the units of an annotation folder."""
        stem = "".join(c if c.isalnum() else "-" for c in self.path)[-60:]
        return f"{self.kind}-{stem}-{zlib.crc32(self.path.encode('utf-8', 'backslashreplace')):08x}-{self.part}"


def find_units(root: Path) -> list[Unit]:
    """Returns the units of an annotation folder; of records with equal names, that of the first unit counts.

    Raises:
        LayoutError: The folder does not exist or holds no `merged_anno`.
    """
    if not root.is_dir():
        raise LayoutError(f"{root}: there is no such annotation folder; give the folder of the downloaded release")
    units = [_file_unit(root, kind, root / name) for name, kind in LISTS.items() if (root / name).is_file()]
    for kind in KINDS:
        for folder in (root / "raw_labels" / kind, root / kind):
            if folder.is_dir():
                units += _units_of(root, kind, folder)
    if not any(unit.kind == "merged_anno" for unit in units):
        raise LayoutError(
            f"{root}: has no merged_anno/*.tar.gz and no merged_anno folder of JSON files; "
            "download the release's merged_anno, or give the folder that holds it"
        )
    return sorted(units)


def _units_of(root: Path, kind: str, folder: Path) -> list[Unit]:
    units: list[Unit] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        loose = 0
        for name in names:
            if name.endswith(ARCHIVES):
                units.append(_file_unit(root, kind, Path(parent) / name))
            else:
                loose += 1
        if loose:
            parts, path = -(-loose // FILES_A_UNIT), Path(parent).relative_to(root).as_posix()
            stamp = f"{len(names)} files, {os.stat(parent).st_mtime_ns}"
            units += [Unit(kind, path, part, parts, stamp, loose // parts) for part in range(parts)]
    return units


def _file_unit(root: Path, kind: str, path: Path) -> Unit:
    stat = path.stat() if path.exists() else path.lstat()  # a dangling link is reported when it is read
    stamp = f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    return Unit(kind, path.relative_to(root).as_posix(), 0, 1, stamp, stat.st_size)
