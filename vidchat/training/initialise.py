"""Starts a stage from the weights of an earlier one or of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidchat.model.backbone import language_model_folder, load_language_model
from vidchat.model.responder import Responder
from vidchat.registry import to_names
from vidchat.release import TOKENIZERS, read_config, read_weights
from vidchat.runtime.finite import not_finite
from vidchat.shipped import find
from vidchat.tokenizers.text import HubTokenizer
from vidchat.tokenizers.weights import TokenizerError
from vidchat.training.checkpoint_file import CheckpointError, read_checkpoint
from vidchat.training.module import TrainingModule
from vidchat.training.same_run import check_format, differing, same_tokenizers


def initialise(module: TrainingModule, source: Path, config: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """Loads those averaged weights of a release folder or a checkpoint that the network has, too.

    Args:
        module: Module to train; its average starts from the loaded weights.
        source: Release folder, or a `step_*.ckpt` of `train.py`.
        config: Config of the run about to start, for the message about differences.
        fingerprints: Fingerprints of the run's tokenizers; the source must have been trained with the same.

    Returns:
        A sentence that says what was loaded and which modules are new.

    Raises:
        CheckpointError: the source is of another network, a shape differs, or a weight is not finite.
        ReleaseError: the folder is not a release.
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
    damage = not_finite({name: weights[name] for name in shared})
    if damage is not None:
        raise CheckpointError(f"init_from={source}: {damage}; give a release or a checkpoint whose weights are finite")
    with torch.no_grad():
        for name in shared:
            own[name].copy_(weights[name])
    module.ema.reset()
    new, unused = _modules(own.keys() - shared, shared), _modules(weights.keys() - shared, shared)
    notes = [f"{len(shared)} tensors loaded from {source}"]
    notes += [f"new here and untrained: {', '.join(new)}"] if new else []
    notes += [f"there but not used: {', '.join(unused)}"] if unused else []
    return "; ".join(notes)


def start_from_language_model(module: TrainingModule, source: str, text_tokenizer: str | None) -> str:
    """Loads a Qwen3's weights into the backbone of the responder to train, see `load_language_model`.

    Its words are taken if the text tokenizer has the fingerprint of the tokenizer beside its weights. Both then give
    every text the same ids, wherever they are stored.

    Args:
        module: Module that trains a new responder.
        source: Folder with `config.json`, safetensors and a tokenizer, or a name on the Hub.
        text_tokenizer: Fingerprint of the run's text tokenizer; `None` without one.

    Returns:
        A sentence that says what was loaded.

    Raises:
        CheckpointError: the network is not a responder.
        LanguageModelError: the language model does not fit.
    """
    if not isinstance(module.network, Responder):
        raise CheckpointError("backbone_from is for the responder's stages; this one trains a tokenizer")
    folder = language_model_folder(source)
    summary = load_language_model(module.network, folder, source, _has_tokenizer(folder, text_tokenizer))
    module.ema.reset()
    return summary


def _has_tokenizer(folder: Path, fingerprint: str | None) -> bool:
    """Returns whether the tokenizer in a folder has a fingerprint."""
    try:
        return HubTokenizer(str(folder)).fingerprint() == fingerprint
    except TokenizerError:  # none there
        return False


def _read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Returns the weights, config and tokenizers' fingerprints of a release folder or a checkpoint."""
    if not source.exists():
        raise CheckpointError(f"init_from={source} does not exist; give a release folder or a checkpoint")
    if source.is_dir():
        config = read_config(source)
        return read_weights(source), config, config["fingerprints"]
    checkpoint = read_checkpoint(source)
    check_format(f"init_from={source}", checkpoint)
    prefix = "network."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return weights | checkpoint["ema"]["average"], checkpoint["config"], checkpoint.get("fingerprints", {})


def _as_released(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a run's config in names, as a release holds it."""
    named = ("model", "condition", "thinker", *TOKENIZERS)
    return {key: to_names(value) if key in named else value for key, value in config.items()}


def _modules(names: set[str], others: set[str]) -> list[str]:
    """Returns the largest modules that hold some of these tensors and none of the others."""
    taken = {prefix for name in others for prefix in _prefixes(name)}
    return sorted({next(prefix for prefix in _prefixes(name) if prefix not in taken) for name in names})


def _prefixes(name: str) -> list[str]:
    """Returns `a`, `a.b`, `a.b.c` for `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
