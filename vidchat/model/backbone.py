"""Initialises the backbone from a language model: weights of Qwen3 in `transformers`, e.g. Qwen/Qwen3-0.6B.

Its word embeddings are used if the text tokenizer is its own, and all other tokens enter at their scale.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vidchat.conditions.scores import ScoreEmbedding
from vidchat.conditions.text import TextEmbedding
from vidchat.conditions.thinker import FeatureEmbedding
from vidchat.model.responder import Responder
from vidchat.model.transformer import Shape
from vidchat.runtime.hub import HubError, download, is_hub_name

log = logging.getLogger(__name__)
_FILES = ("*.json", "*.safetensors", "merges.txt")  # the weights, and what a tokenizer is read from
_WORDS = "embed_tokens.weight"
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


def language_model_folder(source: str) -> Path:
    """Returns the folder of a language model's weights and tokenizer, downloaded if `source` is a name on the Hub."""
    if (Path(source) / "config.json").is_file():
        return Path(source)
    if Path(source).exists() or not is_hub_name(source):
        raise LanguageModelError(f"backbone_from={source} holds no config.json; give a folder or a name on the Hub")
    try:
        return download(source, _FILES)
    except HubError as error:
        raise LanguageModelError(f"backbone_from={error}") from error


def load_language_model(responder: Responder, folder: Path, source: str, same_ids: bool) -> str:
    """Copies the weights of a Qwen3 into a new responder's backbone, and its word embeddings into those of text.

    Tokens that are not its words are scaled to the root mean square of its words, see `scale_inputs`. A warning is
    logged if the responder reads text and does not get the words.

    Args:
        responder: A new responder, whose backbone must have the language model's shape.
        folder: Folder with `config.json` and safetensors.
        source: Name of the language model in messages.
        same_ids: Whether the text tokenizer is the language model's, so that id i is row i of its word embeddings. The
            number of rows does not tell: Qwen3-0.6B has 151,936 for 151,669 ids, and any smaller vocabulary would fit.

    Returns:
        A sentence that says what was loaded.

    Raises:
        LanguageModelError: The source is not a Qwen3, has another shape, or lacks a file or rows of words.
    """
    _check(json.loads((folder / "config.json").read_text()), responder.backbone.shape, source)
    weights = {name.removeprefix("model."): tensor for name, tensor in _tensors(folder, source)}
    parameters = dict(responder.backbone.named_parameters())
    missing = sorted(parameters.keys() - weights.keys())
    if missing:
        raise LanguageModelError(f"backbone_from={source} lacks {missing[0]} and {len(missing) - 1} more tensors")
    table, texts = weights.get(_WORDS), _text_embeddings(responder)
    words = table if same_ids and texts else None
    if words is not None:
        _check_rows(words, texts, source)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
        if table is not None:
            scale_inputs(responder, table.float().square().mean().sqrt().item())
        if words is not None:
            for text in texts:
                text.ids.weight.copy_(words[: text.ids.num_embeddings])
    if texts and words is None:
        log.warning(_without_words(source, table is not None))
    note = "its words are not used" if words is None else "text starts from its words"
    return f"the backbone starts from {source}, {len(parameters)} tensors; {note}"


@torch.no_grad()
def scale_inputs(responder: Responder, rms: float) -> None:
    """Scales all inputs of the backbone, which have a root mean square of about 1 in a new responder.

    Chunks, noise levels, and the conditions text, thinker and scores. A language model's blocks expect tokens of the
    size of its word embeddings, some hundredths: to larger ones the first blocks would add next to nothing.
    Conditions of other packages keep their scale.

    Args:
        responder: A new responder.
        rms: Root mean square of the scaled tokens.
    """
    own = (TextEmbedding, FeatureEmbedding, ScoreEmbedding)
    conditions = [module for module in responder.conditions.embeddings.values() if isinstance(module, own)]
    for module in (responder.embed, responder.noise, *conditions):
        if module is not None:
            _scale(module, rms)


def _scale(module: nn.Module, factor: float) -> None:
    """Scales the output of a sum of linear maps, tables and sequences; in a sequence, only the last is scaled."""
    for parameter in module.parameters(recurse=False):
        parameter.mul_(factor)
    children = list(module.children())
    for child in children[-1:] if isinstance(module, nn.Sequential) else children:
        _scale(child, factor)


def _text_embeddings(responder: Responder) -> list[TextEmbedding]:
    return [module for module in responder.conditions.embeddings.values() if isinstance(module, TextEmbedding)]


def _check_rows(words: Tensor, texts: list[TextEmbedding], source: str) -> None:
    ids = max(text.ids.num_embeddings for text in texts)
    if len(words) < ids:
        raise LanguageModelError(
            f"backbone_from={source} has {len(words)} word embeddings for the {ids} ids of its tokenizer; give the "
            "folder whose weights and tokenizer belong together"
        )


def _without_words(source: str, has_words: bool) -> str:
    """Returns the warning that text does not start from the words of the language model, and what to set."""
    reason = "the text tokenizer is not its own" if has_words else f"it holds no {_WORDS}"
    remedy = f"set text_tokenizer=qwen3 text_tokenizer.name={source}" if has_words else "give a complete language model"
    return (
        f"text is a condition, but the WORD EMBEDDINGS of backbone_from={source} ARE NOT USED, since {reason}: its "
        f"blocks will read random ones; {remedy}, or condition.text=null to train without text"
    )


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
