"""The format of a release: the names of its files, and how releases of earlier formats are read.

Format 2 holds names (`type: stacked_vae`, see `vidchat.registry`). Format 1 held import paths (`_target_: ...`). The
table of all paths that it can hold keeps its releases loadable wherever the code moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidchat.registry import HYDRA_KEYS, FormatError

FORMAT = 2
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
TOKENIZERS = ("video_vae", "audio_codec", "text_tokenizer")
FILES = (CONFIG_FILE, WEIGHTS_FILE, *(f"{name}/*.{kind}" for name in TOKENIZERS for kind in ("json", "safetensors")))
"""Patterns of a release's own files, which are uploaded to the Hub and downloaded from there."""
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
"""Import paths that a release of format 1 can hold, and the names that they stand for."""
RENAMED_KEYS = {"turn": "allow_portrait"}
"""Keys of the config as format 2 first had them, and as they are called now."""
RENAMED_WEIGHTS = {
    "conditions.embed_tokens.": "conditions.embeddings.text.ids.",
    "conditions.score_names.": "conditions.embeddings.scores.names.",
    "conditions.score_values.": "conditions.embeddings.scores.values.",
    "conditions.project_features.": "conditions.embeddings.features.project.",
}
"""Prefixes of weights' names before each condition had a file of its own, and the present ones."""


class ReleaseError(ValueError):
    """A folder that is not a usable release: what is wrong with it and what to do, in one sentence."""


def from_format_1(node: Any) -> Any:
    """Returns a config node of format 1 in format 2.

    Raises:
        FormatError: the node would build what no release of format 1 holds.
    """
    if isinstance(node, Mapping):
        target = str(node["_target_"]) if "_target_" in node else None
        if target is not None and target not in FORMAT_1:
            raise FormatError(f"it would build {target}, which no release of vidchat holds; do not use it")
        named = {} if target is None else {"type": FORMAT_1[target]}
        return named | {str(key): from_format_1(value) for key, value in node.items() if key not in HYDRA_KEYS}
    return [from_format_1(value) for value in node] if isinstance(node, list) else node


def rename_weights(weights: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a responder's weights, from a release or a checkpoint of any age, under their present names.

    Args:
        weights: Weights by name.
        prefix: Prefix of all names in a checkpoint.
    """
    return {_present_name(name, prefix): value for name, value in weights.items()}


def _present_name(name: str, prefix: str) -> str:
    for old, new in RENAMED_WEIGHTS.items():
        if name.startswith(prefix + old):
            return f"{prefix}{new}{name[len(prefix + old) :]}"
    return name
