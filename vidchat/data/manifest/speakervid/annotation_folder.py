"""What lies in an annotation folder: archives, extracted folders and lists, as units of work."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

KINDS = ("merged_anno", "asr", "anno", "l_score", "scene_json", "speaker_json")
LISTS = {"all_data_list.json": "all_list", "SFT_set.json": "sft_list", "testset.json": "test_list"}
ARCHIVES = (".tar.gz", ".tgz", ".tar")
FILES_A_UNIT = 50_000  # of an extracted folder


class LayoutError(ValueError):
    """A folder that does not hold the release's annotations."""


@dataclass(frozen=True, order=True)
class Unit:
    """An archive, a share of an extracted folder, or a list: what one process reads in one go.

    Attributes:
        kind: Kind of the records: `merged_anno`, `asr`, ...; `all_list`, ... for a list.
        path: Path relative to the annotation folder, with `/`.
        part: Number of the part among the folder's `parts` parts.
        parts: Number of parts; 1 for an archive or a list.
        stamp: Text that changes when the archive, list or folder does.
        size: Number of bytes, or of files of a folder; for the order of work.
    """

    kind: str
    path: str
    part: int
    parts: int
    stamp: str
    size: int

    @property
    def id(self) -> str:
        """A name for files, unique among the units of an annotation folder."""
        stem = "".join(c if c.isalnum() else "-" for c in self.path)[-60:]
        return f"{self.kind}-{stem}-{zlib.crc32(self.path.encode('utf-8', 'backslashreplace')):08x}-{self.part}"


def find_units(root: Path) -> list[Unit]:
    """The units of an annotation folder, in the order in which they count when a name comes twice.

    Raises:
        LayoutError: There is no such folder, or no `merged_anno` in it.
    """
    if not root.is_dir():
        raise LayoutError(f"{root}: there is no such annotation folder; name the folder of the downloaded release")
    units = [_file_unit(root, kind, root / name) for name, kind in LISTS.items() if (root / name).is_file()]
    for kind in KINDS:
        for folder in (root / "raw_labels" / kind, root / kind):
            if folder.is_dir():
                units += _units_of(root, kind, folder)
    if not any(unit.kind == "merged_anno" for unit in units):
        raise LayoutError(
            f"{root}: has no merged_anno/*.tar.gz and no merged_anno folder of JSON files; "
            "download the release's merged_anno, or name the folder that holds it"
        )
    return sorted(units)


def _units_of(root: Path, kind: str, folder: Path) -> list[Unit]:
    units: list[Unit] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        loose = 0
        for name in names:
            if name.endswith(ARCHIVES):
                units.append(_file_unit(root, kind, Path(place) / name))
            else:
                loose += 1
        if loose:
            parts, path = -(-loose // FILES_A_UNIT), Path(place).relative_to(root).as_posix()
            stamp = f"{len(names)} files, {os.stat(place).st_mtime_ns}"
            units += [Unit(kind, path, part, parts, stamp, loose // parts) for part in range(parts)]
    return units


def _file_unit(root: Path, kind: str, path: Path) -> Unit:
    found = path.stat() if path.exists() else path.lstat()  # a link to nothing is told of when it is read
    stamp = f"{found.st_size} bytes, {found.st_mtime_ns}"
    return Unit(kind, path.relative_to(root).as_posix(), 0, 1, stamp, found.st_size)
