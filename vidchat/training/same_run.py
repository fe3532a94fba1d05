"""Whether two configs are of one run: a folder holds one, and what is changed in it counts or is refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from vidchat.runtime.nested import differing_leaves
from vidchat.training.checkpoint_file import CheckpointError, load_checkpoint

log = logging.getLogger(__name__)
# What decides how the weights move. All else may change from one start to the next: loggers, samples, workers, devices.
_DECIDES = (
    "stage", "model", "condition", "seed", "data", "init_from", "backbone_from",
    "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm", "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
_FREE = (
    "stage.steps", "stage.export", "stage.module.release_dtype", "data.num_workers", "data.prepare", "model.sampling",
)  # fmt: skip
_FREE_ENDS = ("optimizer.steps", "optimizer.patience", ".num_workers")
# What the weights and the optimizer's moments are made for.
_FIXED = ("stage.name", "model", "condition", "stage.module.tokenizer", "stage.module.codec")
_FIXED_ENDS = (".no_decay",)
_BATCH = ("data.batch_size", "trainer.accumulate_grad_batches")

Difference = tuple[str, Any, Any]


def check_resumed(source: Path, ours: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Refuses to go on with a run as something else than it began.

    With `resume=auto` nothing may differ that decides how the weights move: the folder may hold another experiment. A
    checkpoint that is named (`resume=PATH`) is gone on from with another optimizer, precision, batch or other data, as
    the config says; only what its weights are made for may not differ.

    Args:
        source: The checkpoint.
        ours: The config of the run about to go on.
        fingerprints: Of its tokenizers.

    Raises:
        CheckpointError: something differs that may not.
    """
    checkpoint = load_checkpoint(source)
    same_tokenizers(f"resume={source}", fingerprints, checkpoint.get("fingerprints", {}))
    differences = deciding_differences(checkpoint["config"], ours)
    fixed = [item for item in differences if _under(item[0], _FIXED) or item[0].endswith(_FIXED_ENDS)]
    if fixed:
        raise CheckpointError(
            f"{source} was trained with another config: {_in_words(fixed)}; set output_dir to a new folder, "
            "resume=null to start afresh, or init_from to start from its weights"
        )
    if differences and ours.get("resume", "auto") == "auto":
        raise CheckpointError(
            f"the run in {source.parent.parent} has another config: {_in_words(differences)}; set output_dir to a new "
            f"folder, resume=null to start afresh (the old run is set aside), or resume={source} to go on from there "
            "with these changes"
        )
    if differences:
        log.warning("going on from %s with a changed config: %s", source, _in_words(differences))


def same_tokenizers(source: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Raises `CheckpointError` if a tokenizer is not the one that `source` was trained with."""
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"{source} was trained with the {name} {theirs[name]}, and this run has {ours[name]}; set "
                f"{name}= to the one it was trained with"
            )


def differing(one: Mapping[str, Any], other: Mapping[str, Any], section: str | None = None) -> list[str]:
    """Dotted keys, of one section or of all, that two configs hold with different values, as `key (one -> other)`."""
    if section is not None:
        one, other = {section: one.get(section)}, {section: other.get(section)}
    return [f"{key} ({before} -> {after})" for key, before, after in differing_leaves(one, other)]


def deciding_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """What decides how the weights move and is not the same in both."""
    every = differing_leaves(theirs, ours)
    batch = _global_batch(ours)
    free = (*_FREE, *_BATCH) if batch is not None and batch == _global_batch(theirs) else _FREE
    return [
        (key, before, after)
        for key, before, after in every
        if _under(key, _DECIDES) and not _under(key, free) and not key.endswith(_FREE_ENDS)
        and not _same_path(before, after) and not _repeats((key, before, after), every)
    ]  # fmt: skip


def _repeats(item: Difference, every: list[Difference]) -> bool:
    """Whether a key of `stage.module` or `stage.datamodule` only passes another on, as in `model: ${model}`."""
    key, *values = item
    if not key.startswith(("stage.module.", "stage.datamodule.")):
        return False
    end = key.split(".", 2)[2]
    places = {f"{place}{tail}" for tail in (end, end.partition(".")[2]) for place in ("", "stage.", "data.")}
    return any(other[0] in places and list(other[1:]) == values for other in every)


def _global_batch(config: Mapping[str, Any]) -> int | None:
    """Clips in an optimizer step, over all ranks; `None` if the config does not say (`trainer.devices=auto`)."""
    trainer, data = config.get("trainer") or {}, config.get("data") or {}
    parts = [data.get("batch_size"), trainer.get("accumulate_grad_batches", 1), trainer.get("devices")]
    parts.append(trainer.get("num_nodes", 1))
    return prod(parts) if all(type(part) is int for part in parts) else None


def _same_path(before: Any, after: Any) -> bool:
    return isinstance(before, str) and isinstance(after, str) and os.path.abspath(before) == os.path.abspath(after)


def _under(key: str, places: tuple[str, ...]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _in_words(differences: list[Difference]) -> str:
    return ", ".join(f"{key} ({before} -> {after})" for key, before, after in differences)
