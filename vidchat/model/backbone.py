"""A backbone that starts from a language model: weights of `transformers`' Qwen3, e.g. Qwen/Qwen3-0.6B."""

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

# Qwen3's config.json on the left, `Shape` on the right.
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "mlp_width",
}


class LanguageModelError(ValueError):
    """A language model that the backbone cannot start from: what is wrong and what to change, in one sentence."""


def load_language_model(responder: Responder, source: str) -> str:
    """Copies a Qwen3's weights into the backbone, and its token embeddings where the vocabularies are the same.

    Args:
        responder: Its backbone must have the language model's shape.
        source: A folder with `config.json` and safetensors, or a name on the Hub.

    Returns:
        A sentence that says what was loaded.

    Raises:
        LanguageModelError: it is no Qwen3, its shape is another, or a file is lacking.
    """
    folder = _folder(source)
    _check(json.loads((folder / "config.json").read_text()), responder.backbone.shape, source)
    weights = {name.removeprefix("model."): tensor for name, tensor in _tensors(folder, source)}
    wanted = dict(responder.backbone.named_parameters())
    lacking = sorted(wanted.keys() - weights.keys())
    if lacking:
        raise LanguageModelError(f"backbone_from={source} lacks {lacking[0]} and {len(lacking) - 1} more tensors")
    words, kept = weights.get("embed_tokens.weight"), "its token embeddings are not used"
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(weights[name])
        texts = [module for module in responder.conditions.embeddings.values() if isinstance(module, TextEmbedding)]
        if texts and words is not None:
            own = texts[0].ids.weight
            if own.shape == words.shape:
                own.copy_(words)
                kept = "its token embeddings too"
    return f"the backbone starts from {source}, {len(wanted)} tensors; {kept}"


def _folder(source: str) -> Path:
    if (Path(source) / "config.json").is_file():
        return Path(source)
    if Path(source).exists() or source.count("/") != 1:
        raise LanguageModelError(f"backbone_from={source} holds no config.json; give a folder or a name on the Hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "*.safetensors"]))
    except OSError as error:  # the Hub's errors and those of the connection
        raise LanguageModelError(
            f"backbone_from={source} is no folder, and the Hub did not give it: {error}"
        ) from error


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
            with safe_open(path, framework="pt") as opened:
                tensors += [(name, opened.get_tensor(name)) for name in opened.keys() if name != "lm_head.weight"]  # noqa: SIM118
        except SafetensorError as error:
            raise LanguageModelError(f"{path} is damaged: {error}") from error
    return tensors
