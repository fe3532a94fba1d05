"""Initialises the backbone from a language model: weights of Qwen3 in `transformers`, e.g. Qwen/Qwen3-0.6B."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vidchat.conditions.text import TextEmbedding
from vidchat.model.responder import Responder
from vidchat.model.transformer import Shape
from vidchat.runtime.hub import HubError, download, is_hub_name

# Keys of Qwen3's config.json, and the fields of `Shape`.
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_width",
}


class LanguageModelError(ValueError):
    """Raised for a language model that the backbone cannot start from; the message says what to change."""


def load_language_model(responder: Responder, source: str) -> str:
    """Copies the weights of a Qwen3 into the backbone, and its token embeddings if the vocabularies are equal.

    Args:
        responder: The responder, whose backbone must have the language model's shape.
        source: Folder with `config.json` and safetensors, or a name on the Hub.

    Returns:
        A sentence that says what was loaded.

    Raises:
        LanguageModelError: The source is not a Qwen3, has another shape, or lacks a file.
    """
    folder = _folder(source)
    _check(json.loads((folder / "config.json").read_text()), responder.backbone.shape, source)
    weights = {name.removeprefix("model."): tensor for name, tensor in _tensors(folder, source)}
    parameters = dict(responder.backbone.named_parameters())
    missing = sorted(parameters.keys() - weights.keys())
    if missing:
        raise LanguageModelError(f"backbone_from={source} lacks {missing[0]} and {len(missing) - 1} more tensors")
    embeddings, note = weights.get("embed_tokens.weight"), "its token embeddings are not used"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        texts = [module for module in responder.conditions.embeddings.values() if isinstance(module, TextEmbedding)]
        if texts and embeddings is not None:
            ids = texts[0].ids.weight
            if ids.shape == embeddings.shape:
                ids.copy_(embeddings)
                note = "its token embeddings too"
    return f"the backbone starts from {source}, {len(parameters)} tensors; {note}"


def _folder(source: str) -> Path:
    if (Path(source) / "config.json").is_file():
        return Path(source)
    if Path(source).exists() or not is_hub_name(source):
        raise LanguageModelError(f"backbone_from={source} holds no config.json; give a folder or a name on the Hub")
    try:
        return download(source, ["config.json", "*.safetensors"])
    except HubError as error:
        raise LanguageModelError(f"backbone_from={error}") from error


def _check(config: Mapping[str, Any], shape: Shape, source: str) -> None:
    if config.get("model_type") != "qwen3":
        raise LanguageModelError(f"backbone_from={source} is a {config.get('model_type')}, not a qwen3")
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    theirs = {ours: config[name] for name, ours in _SIZES.items()} | {"theta": theta}
    keys = [f"model.backbone.{key}={value}" for key, value in theirs.items() if getattr(shape, key) != value]
    if keys:
        raise LanguageModelError(f"backbone_from={source} has another shape; set {' '.join(keys)}")


def _tensors(folder: Path, source: str) -> list[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise LanguageModelError(f"backbone_from={source} holds no safetensors; pickled weights are not read")
    tensors = []
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                tensors += [(name, file.get_tensor(name)) for name in file.keys() if name != "lm_head.weight"]  # noqa: SIM118
        except SafetensorError as error:
            raise LanguageModelError(f"{path} is damaged: {error}") from error
    return tensors
