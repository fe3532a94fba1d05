"""Starting a stage from what an earlier one learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.model.backbone import load_language_model
from vidchat.model.responder import Responder
from vidchat.registry import to_names
from vidchat.release import TOKENIZERS, read_config, read_weights
from vidchat.release.format import rename_weights
from vidchat.runtime.finite import not_finite
from vidchat.shipped import find
from vidchat.training.checkpoint_file import CheckpointError, read_checkpoint
from vidchat.training.module import TrainingModule
from vidchat.training.same_run import differing, same_tokenizers


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
        CheckpointError: the source is of something else, a shape differs, or a weight is not finite.
        ReleaseError: a folder that is not a release.
    """
    source = find(source)
    weights, theirs, their_fingerprints = _read(source)
    same_tokenizers(f"init_from={source}", fingerprints, their_fingerprints)
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
        ours = _as_released(config) if source.is_dir() else config
        keys = ", ".join(differing(theirs, ours, "model") or differing(theirs, ours)) or "no key of the config"
        raise CheckpointError(
            f"init_from={source}: {name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here; what "
            f"differs in the config: {keys}"
        )
    broken = not_finite({name: weights[name] for name in shared})
    if broken is not None:
        raise CheckpointError(f"init_from={source}: {broken}; give a release or a checkpoint whose weights are finite")
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
    weights = rename_weights(weights | checkpoint["ema"]["average"])
    return weights, checkpoint["config"], checkpoint.get("fingerprints", {})


def _as_released(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with its parts in names, as a release has them."""
    parts = ("model", "condition", "thinker", *TOKENIZERS)
    return {key: to_names(value) if key in parts else value for key, value in config.items()}


def _modules(names: set[str], others: set[str]) -> list[str]:
    """The largest modules that hold some of these tensors and none of the others."""
    taken = {prefix for name in others for prefix in _prefixes(name)}
    return sorted({next(prefix for prefix in _prefixes(name) if prefix not in taken) for name in names})


def _prefixes(name: str) -> list[str]:
    """`a.b.c` -> `a`, `a.b`, `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
