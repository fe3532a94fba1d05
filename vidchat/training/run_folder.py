"""A run's folder: one process uses it at a time, and files of an earlier run are never mixed with its own."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vidchat.runtime.atomic import atomic_file, settle_folder
from vidchat.training.checkpoint import newest_first, step_of

log = logging.getLogger(__name__)
_LOCK, _FINISHED = ".lock", "finished.json"
# Names that train.py writes into a run's folder beside the export; only these are set aside.
_WRITTEN = (
    "checkpoints", "metrics.csv", "train.log", "tensorboard", "wandb", "samples", "frames", "sounds",
    "pictures", _FINISHED,  # runs of earlier versions wrote "pictures"
)  # fmt: skip


class RunFolderError(ValueError):
    """A run's folder that this run may not write to."""


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other runs out of the folder inside the block. Rank 0 holds the lock for all; it ends with its process.

    Raises:
        RunFolderError: another run is in the folder.
    """
    if _rank() != 0:
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    with (output / _LOCK).open("a+") as file:
        try:
            # Not flock, which workers forked from this process would hold after its death.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise RunFolderError(
                    f"another run is in {output} ({file.read().strip() or 'its process is not known'}); wait for its "
                    "end, or set output_dir to another folder"
                ) from error
            log.warning("%s cannot be locked (%s): do not start two runs in it at once", output, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}")
        file.flush()
        yield


def clean_up(output: Path, export: Path) -> None:
    """Removes unfinished files of a killed run, and completes an export that it was replacing."""
    if _rank() == 0:
        settle_folder(export.resolve())
        for orphan in (output / "checkpoints").glob(".*.tmp"):
            orphan.unlink()


def finished_step(output: Path, export: Path) -> int | None:
    """Returns the step at which the run in a folder was exported to `export`; `None` if it was not, or is gone."""
    try:
        record = json.loads((output / _FINISHED).read_text(encoding="utf-8"))
        step, exported = int(record["step"]), Path(record["export"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if exported.resolve() == export.resolve() and export.is_dir() else None


def finished_sentence(output: Path, export: Path, step: int) -> str:
    """Returns the message for a run with nothing left to train."""
    return (
        f"the run in {output} is finished: it was trained for {step} steps and exported to {export}. To continue it, "
        "raise stage.steps; to train anew, set output_dir to a new folder, or resume=null to set this run aside"
    )


def mark_finished(output: Path, export: Path, step: int) -> None:
    """Records the step at which the run was exported."""
    with atomic_file(output / _FINISHED) as file:
        file.write(json.dumps({"step": step, "export": str(export)}).encode())


def check_set_aside(config: Mapping[str, Any], resume: Path | None) -> None:
    """Refuses a fresh start that would set aside weights it starts from.

    Raises:
        RunFolderError: a path of the config lies in a folder that would be set aside.
    """
    output = Path(config["output_dir"])
    obsolete = [path.resolve() for path in _obsolete(output, Path(config["stage"]["export"]), resume)]
    sources = {key: config[key] for key in ("init_from", "backbone_from")}
    sources |= {f"{name}.directory": (config[name] or {}).get("directory") for name in config["stage"]["tokenizers"]}
    for key, value in sources.items():
        if value is not None and any(Path(value).resolve().is_relative_to(path) for path in obsolete):
            raise RunFolderError(
                f"{key}={value} is part of the run in {output}, which resume={config['resume']} sets aside; set "
                "output_dir to a new folder"
            )


def set_aside(output: Path, export: Path, resume: Path | None) -> None:
    """Moves files of an earlier run to a folder beside it, unless this run resumes from its newest checkpoint.

    Args:
        output: Folder of the run.
        export: Folder of its export.
        resume: Checkpoint to resume from, `None` for a fresh start. If it lies in the folder, only checkpoints of
            later steps are set aside.
    """
    obsolete = _obsolete(output, export, resume)
    if not obsolete or _rank() != 0:
        return
    names = (output.with_name(f"{output.name}.old{k}") for k in range(1, 10**6))
    folder = next(name for name in names if not name.exists())
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.close()  # it reopens its file for the next line, in the new folder
    for path in obsolete:
        target = folder / path.relative_to(output)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, target)
    moved = "the old run" if resume is None or not _within(resume, output) else f"what followed {resume.name}"
    log.warning("%s in %s is set aside in %s", moved, output, folder)


def is_set_aside(folder: Path) -> bool:
    """Returns whether a folder holds files that `set_aside` moved."""
    return re.search(r"\.old\d+$", folder.name) is not None


def sweep_name(overrides: str) -> str:
    """Returns a folder name for the overrides of a sweep's job, such as `seed=1,stage.optimizer.lr=0.001`."""
    name = overrides.replace("/", "_").replace("'", "")  # quotes are for Hydra alone
    digest = hashlib.sha256(overrides.encode()).hexdigest()[:8]
    return name if len(os.fsencode(name)) <= 200 else f"{name[:60]}-{digest}"


def _obsolete(output: Path, export: Path, resume: Path | None) -> list[Path]:
    """Returns files of an earlier run that do not belong to a run that resumes from `resume`."""
    checkpoints = newest_first(output / "checkpoints")
    if resume is not None and _within(resume, output):
        return [path for path in checkpoints if step_of(path) > step_of(resume)]
    if not checkpoints and not export.exists():
        return []  # nothing was trained: a failed start leaves nothing worth keeping
    names = [output / name for name in _WRITTEN]
    if _within(export, output):
        names.append(output / export.resolve().relative_to(output.resolve()).parts[0])
    return [path for path in dict.fromkeys(names) if path.exists()]


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()


def _rank() -> int:
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]
