"""How a release's config names what it is built from, in this format and in the one before.

Format 2 names parts (`type: stacked_vae`, see `vidchat.registry`). Format 1 held import paths (`_target_: ...`); a
table of those that it can hold keeps its releases loadable wherever the code has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
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


class FormatError(ValueError):
    """A config that is of no known format, or would build what no release of that format holds."""


def to_names(node: Any) -> Any:
    """A node of a training config with the registered names of what it instantiates.

    Raises:
        UnknownName: a part has none.
        FormatError: it calls for more than a name and arguments, such as `_partial_`.
    """
    if isinstance(node, Mapping):
        other = [key for key in node if str(key).startswith("_") and key not in _HYDRA]
        if other:
            raise FormatError(f"a release cannot hold {', '.join(map(str, other))}; name a class and its arguments")
        named = {"type": name_of(get_object(node["_target_"]))} if "_target_" in node else {}
        return named | {str(key): to_names(value) for key, value in node.items() if key not in _HYDRA}
    return [to_names(value) for value in node] if isinstance(node, list) else node


def from_format_1(node: Any) -> Any:
    """A node of format 1 in format 2.

    Raises:
        FormatError: it would build what no release of format 1 holds.
    """
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and target not in FORMAT_1:
            raise FormatError(f"it would build {target}, which no release of vidchat holds; do not use it")
        named = {} if target is None else {"type": FORMAT_1[target]}
        return named | {str(key): from_format_1(value) for key, value in node.items() if key not in _HYDRA}
    return [from_format_1(value) for value in node] if isinstance(node, list) else node
