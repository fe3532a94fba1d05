"""Starting a stage from what an earlier one learned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.model.backbone import load_language_model
from vidchat.model.responder import Responder
from vidchat.nested import differing_leaves
from vidchat.release import read_config, read_weights
from vidchat.training.checkpoint import CheckpointError, read_checkpoint
from vidchat.training.module import TrainingModule

log = logging.getLogger(__name__)


def initialise(module: TrainingModule, source: Path, config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """Loads the averaged weights of a release folder or a checkpoint, as far as the network has them too.

    Args:
        module: What is about to be trained; its average starts from the loaded weights.
        source: A release folder, or a `step_*.ckpt` of `train.py`.
        config: The config of the run about to start, to name what differs.
        fingerprints: Of the run's tokenizers; the source must have been trained with the same.

    Returns:
        A sentence that says what was loaded and which modules are new.

    Raises:
        CheckpointError: the source is of something else, or a shape differs.
        ReleaseError: a folder that is not a release.
    """
    weights, theirs, their_fingerprints = _read(source)
    _same_tokenizers(f"init_from={source}", fingerprints, their_fingerprints)
    own = module.network.state_dict()
    shared = own.keys() & weights.keys()
    if not shared:
        raise CheckpointError(
            f"init_from={source} holds none of this network's weights (it is of another kind of stage); give a release "
            "folder or a checkpoint of an earlier stage of the same model"
        )
    wrong = sorted(name for name in shared if own[name].shape != weights[name].shape)
    if wrong:
        name = wrong[0]
        keys = ", ".join(differing(theirs, config, "model") or differing(theirs, config)) or "no key of the config"
        raise CheckpointError(
            f"init_from={source}: {name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here; what "
            f"differs in the config: {keys}"
        )
    with torch.no_grad():
        for name in shared:
            own[name].copy_(weights[name])
    module.ema.reset()
    new, unused = _modules(own.keys() - shared, shared), _modules(weights.keys() - shared, shared)
    parts = [f"{len(shared)} tensors loaded from {source}"]
    parts += [f"new here and untrained: {', '.join(new)}"] if new else []
    parts += [f"there but not used: {', '.join(unused)}"] if unused else []
    return "; ".join(parts)


def start_from_language_model(module: TrainingModule, source: str) -> str:
    """Loads a Qwen3's weights into the backbone of the responder that is about to be trained.

    Raises:
        CheckpointError: what is trained has no backbone.
        LanguageModelError: it does not fit.
    """
    if not isinstance(module.network, Responder):
        raise CheckpointError("backbone_from is for the responder's stages; this one trains a tokenizer")
    said = load_language_model(module.network, source)
    module.ema.reset()
    return said


def check_resumed(source: Path, ours: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """Refuses to go on with a run as something else than it began; warns where going on is not exact.

    Args:
        source: The checkpoint.
        ours: The config of the run about to go on.
        fingerprints: Of its tokenizers.

    Raises:
        CheckpointError: the stage, the model, its conditions or its tokenizers differ.
    """
    checkpoint = read_checkpoint(source)
    theirs = checkpoint["config"]
    _same_tokenizers(f"resume={source}", fingerprints, checkpoint.get("fingerprints", {}))
    for section in ("stage.name", "model", "condition"):
        first, *rest = section.split(".")
        pair = [{k: c.get(first, {}).get(k) for k in rest} if rest else c.get(first) for c in (theirs, ours)]
        keys = of_training(differing({first: pair[0]}, {first: pair[1]}))
        if keys:
            raise CheckpointError(
                f"{source} was trained with another config: {', '.join(keys)}; set output_dir to a new folder, "
                "resume=null to start afresh, or init_from to start from its weights"
            )
    inexact = [key for section in ("seed", "data", "stage") for key in differing(theirs, ours, section)]
    if inexact:
        log.warning("resuming %s with a changed config: %s", source, ", ".join(inexact))


def of_training(keys: list[str]) -> list[str]:
    """Those of some keys that training reads; how answers are drawn from a model is not among them."""
    return [key for key in keys if not key.startswith("model.sampling")]


def differing(one: Mapping[str, Any], other: Mapping[str, Any], section: str | None = None) -> list[str]:
    """Dotted keys, of one section or of all, that two configs hold with different values, as `key (one -> other)`."""
    if section is not None:
        one, other = {section: one.get(section)}, {section: other.get(section)}
    return [f"{key} ({before} -> {after})" for key, before, after in differing_leaves(one, other)]


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Weights, config and tokenizers' fingerprints of a release folder or a checkpoint."""
    if not source.exists():
        raise CheckpointError(f"init_from={source} does not exist; give a release folder or a checkpoint")
    if source.is_dir():
        config = read_config(source)
        return read_weights(source), config, config["fingerprints"]
    checkpoint = read_checkpoint(source)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return weights | checkpoint["ema"]["average"], checkpoint["config"], checkpoint.get("fingerprints", {})


def _same_tokenizers(source: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    for name in ours.keys() & theirs.keys():
        if ours[name] != theirs[name]:
            raise CheckpointError(
                f"{source} was trained with the {name} {theirs[name]}, and this run has {ours[name]}; set "
                f"{name}= to the one it was trained with"
            )


def _modules(names: set[str], others: set[str]) -> list[str]:
    """The largest modules that hold some of these tensors and none of the others."""
    taken = {prefix for name in others for prefix in _prefixes(name)}
    return sorted({next(prefix for prefix in _prefixes(name) if prefix not in taken) for name in names})


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
