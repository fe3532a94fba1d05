"""Compares the configs of a checkpoint and of the run that resumes from it: changes take effect or are refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from vidchat.release.format import format_problem
from vidchat.runtime.nested import differing_leaves
from vidchat.training.checkpoint_file import CheckpointError, load_checkpoint

log = logging.getLogger(__name__)
# Keys that determine the updates. All others may change between starts: loggers, samples, workers, devices.
_DETERMINING = (
    "stage", "model", "condition", "seed", "data", "init_from", "backbone_from",
    "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm", "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
_FREE = (
    "stage.steps", "stage.export", "stage.module.release_dtype", "data.num_workers", "data.prepare", "model.sampling",
    "model.window",
)  # fmt: skip
_FREE_ENDS = ("optimizer.steps", "optimizer.patience", ".num_workers")
# Keys that the weights and the optimizer's moments depend on.
_FIXED = ("stage.name", "model", "condition", "stage.module.tokenizer", "stage.module.codec")
_FIXED_ENDS = (".no_decay",)
_BATCH = ("data.batch_size", "trainer.accumulate_grad_batches")

Difference = tuple[str, Any, Any]
UNSTATED = 2  # the format of checkpoints that state none
MOST_NAMED = 6  # differences that a message names


def check_resumed(source: Path, ours: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Refuses to resume a run with another config.

    With `resume=auto` no key that determines the updates may differ, since the folder may hold another experiment. With
    `resume=PATH` the optimizer, precision, batch and data may differ, and the new config counts; only keys that the
    weights depend on may not.

    Args:
        source: Checkpoint to resume from.
        ours: Config of the run that resumes.
        fingerprints: Fingerprints of its tokenizers.

    Raises:
        CheckpointError: a key differs that may not, or the checkpoint is of an earlier format.
    """
    checkpoint = load_checkpoint(source)
    check_format(f"resume={source}", checkpoint)
    same_tokenizers(f"resume={source}", fingerprints, checkpoint.get("fingerprints", {}))
    differences = determining_differences(checkpoint["config"], ours)
    fixed = [item for item in differences if _under(item[0], _FIXED) or item[0].endswith(_FIXED_ENDS)]
    if fixed:
        raise CheckpointError(
            f"{source} was trained with another config: {_format(fixed)}; set output_dir to a new folder, "
            "resume=null to start afresh, or init_from to start from its weights"
        )
    if differences and ours.get("resume", "auto") == "auto":
        raise CheckpointError(
            f"the run in {source.parent.parent} has another config: {_format(differences)}; set output_dir to a new "
            f"folder, resume=null to start afresh (the old run is set aside), or resume={source} to resume from it "
            "with these changes"
        )
    if differences:
        log.warning("resuming from %s with a changed config: %s", source, _format(differences))


def check_format(source: str, checkpoint: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` if a responder's checkpoint is not of the present format (`vidchat.release.format`)."""
    if "fingerprints" not in checkpoint:  # of a tokenizer
        return
    problem = format_problem(source, checkpoint.get("format", UNSTATED))
    if problem is not None:
        raise CheckpointError(problem)


def same_tokenizers(source: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raises `CheckpointError` if a tokenizer is not the one that `source` was trained with."""
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"{source} was trained with the {name} {theirs[name]}, and this run has {ours[name]}; set "
                f"{name}= to the one it was trained with"
            )


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any], section: str | None = None) -> list[str]:
    """Returns the differences of two configs, in one section or in all, as `key (theirs -> ours)`."""
    if section is not None:
        theirs, ours = {section: theirs.get(section)}, {section: ours.get(section)}
    return [f"{key} ({before} -> {after})" for key, before, after in differing_leaves(theirs, ours)]


def determining_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """Returns the differences in keys that determine the updates."""
    differences = differing_leaves(theirs, ours)
    batch = _global_batch(ours)
    free = (*_FREE, *_BATCH) if batch is not None and batch == _global_batch(theirs) else _FREE
    return [
        (key, before, after)
        for key, before, after in differences
        if _under(key, _DETERMINING) and not _under(key, free) and not key.endswith(_FREE_ENDS)
        and not _same_path(before, after) and not _repeats((key, before, after), differences)
    ]  # fmt: skip


def _repeats(item: Difference, differences: list[Difference]) -> bool:
    """Returns whether a key of `stage.module` or `stage.datamodule` only refers to another, as in `model: ${model}`."""
    key, *values = item
    if not key.startswith(("stage.module.", "stage.datamodule.")):
        return False
    end = key.split(".", 2)[2]
    sources = {f"{section}{tail}" for tail in (end, end.partition(".")[2]) for section in ("", "stage.", "data.")}
    return any(other[0] in sources and list(other[1:]) == values for other in differences)


def _global_batch(config: Mapping[str, Any]) -> int | None:
    """Returns the clips in an optimizer step, over all ranks; `None` if unknown (`trainer.devices=auto`)."""
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    factors = [data.get("batch_size"), trainer.get("accumulate_grad_batches", 1), trainer.get("devices")]
    factors.append(trainer.get("num_nodes", 1))
    return prod(factors) if all(type(factor) is int for factor in factors) else None


def _same_path(before: Any, after: Any) -> bool:
    return isinstance(before, str) and isinstance(after, str) and os.path.abspath(before) == os.path.abspath(after)


def _under(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _format(differences: list[Difference]) -> str:
    named = [f"{key} ({before} -> {after})" for key, before, after in differences[:MOST_NAMED]]
    rest = len(differences) - len(named)
    return ", ".join(named) + (f", and {rest} more" if rest > 0 else "")
