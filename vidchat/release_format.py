"""How a release's config names what it is built from, in this format and in the one before.

Format 2 names parts (`type: stacked_vae`, see `vidchat.registry`). Format 1 held import paths (`_target_: ...`); a
table of those that it can hold keeps its releases loadable wherever the code has moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_object

from vidchat.registry import name_of

FORMAT = 2
_HYDRA = {"_target_", "_recursive_", "_convert_"}
FORMAT_1 = {
    "vidchat.model.responder.Responder": "responder",
    "vidchat.model.transformer.Shape": "transformer",
    "vidchat.model.flow.FlowShape": "flow_head",
    "vidchat.model.objective.Objective": "objective",
    "vidchat.model.responder.Objective": "objective",
    "vidchat.model.reading.ChunkSampling": "chunk_sampling",
    "vidchat.model.depth.CodeSampling": "code_sampling",
    "vidchat.tokenizers.stacked.StackedVAE.load": "stacked_vae",
    "vidchat.tokenizers.causal.CausalVAE.from_pretrained": "causal_vae",
    "vidchat.tokenizers.packed.PackedVAE.from_pretrained": "packed_vae",
    "vidchat.tokenizers.stft_codec.StftCodec.load": "stft_codec",
    "vidchat.tokenizers.pretrained_audio.EncodecCodec.from_pretrained": "encodec",
    "vidchat.tokenizers.pretrained_audio.MimiCodec.from_pretrained": "mimi",
    "vidchat.tokenizers.text.ByteTokenizer": "bytes",
    "vidchat.tokenizers.text.HubTokenizer": "hub_tokenizer",
    "vidchat.tokenizers.thinker.Thinker": "thinker",
}


MOVED_WEIGHTS = {
    "conditions.embed_tokens.": "conditions.embeddings.text.ids.",
    "conditions.score_names.": "conditions.embeddings.scores.names.",
    "conditions.score_values.": "conditions.embeddings.scores.values.",
    "conditions.project_features.": "conditions.embeddings.features.project.",
}
"""Beginnings of the names that weights had before each condition had a file of its own, and of their names now."""


class FormatError(ValueError):
    """A config that is of no known format, or would build what no release of that format holds."""


def to_names(node: Any, foreign: bool = True) -> Any:
    """A node of a training config with the registered names of what it instantiates; one of names stays as it is.

    Args:
        node: Mappings, sequences and values, plain or OmegaConf's.
        foreign: Whether other packages than this one may be imported for it.

    Raises:
        UnknownName: a part has none.
        FormatError: it calls for more than a name and arguments, such as `_partial_`, or for what is not there.
    """
    if isinstance(node, Mapping):
        other = [key for key in node if str(key).startswith("_") and key not in _HYDRA]
        if "_target_" in node:
            other += [key for key in node if key == "type"]  # it would stand where the name stands
        if not foreign and "/" in str(node.get("type")):
            raise FormatError(f"it would build {node['type']}, which is no part of vidchat; do not use it")
        if other:
            raise FormatError(f"a release cannot hold {', '.join(map(str, other))}; name a class and its arguments")
        named = {"type": name_of(_imported(str(node["_target_"]), foreign))} if "_target_" in node else {}
        return named | {str(key): to_names(value, foreign) for key, value in node.items() if key not in _HYDRA}
    if isinstance(node, Sequence) and not isinstance(node, str | bytes):
        return [to_names(value, foreign) for value in node]
    return node


def _imported(target: str, foreign: bool) -> Any:
    if not (foreign or target.startswith("vidchat.")):
        raise FormatError(f"it would build {target}, which is no part of vidchat; do not use it")
    try:
        return get_object(target)
    except Exception as error:  # Hydra's own kinds, and whatever an import raises
        raise FormatError(f"_target_: {target} cannot be imported: {str(error).partition(chr(10))[0]}") from error


def from_format_1(node: Any) -> Any:
    """A node of format 1 in format 2.

    Raises:
        FormatError: it would build what no release of format 1 holds.
    """
    if isinstance(node, Mapping):
        target = str(node["_target_"]) if "_target_" in node else None
        if target is not None and target not in FORMAT_1:
            raise FormatError(f"it would build {target}, which no release of vidchat holds; do not use it")
        named = {} if target is None else {"type": FORMAT_1[target]}
        return named | {str(key): from_format_1(value) for key, value in node.items() if key not in _HYDRA}
    return [from_format_1(value) for value in node] if isinstance(node, list) else node


def names_of_weights(weights: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A responder's weights, of a release or a checkpoint of any age, by the names they have now.

    Args:
        weights: Weights by name.
        prefix: What every name begins with in a checkpoint.
    """
    return {_name_now(name, prefix): value for name, value in weights.items()}


def _name_now(name: str, prefix: str) -> str:
    for old, new in MOVED_WEIGHTS.items():
        if name.startswith(prefix + old):
            return f"{prefix}{new}{name[len(prefix + old) :]}"
    return name
