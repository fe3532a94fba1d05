"""A sample of a token shard as any WebDataset reader yields it, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from vidchat.data.tokens.shards import ShardError

SUFFIX = ".safetensors"


def decode_sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokens of a sample, for `webdataset.WebDataset(...).map(decode_sample)`.

    Args:
        sample: The bytes by extension, and `__key__`.

    Returns:
        the `key` of the segment, the index of its `span`, and its tokens by track as stored: `latents`
        (T+1, C, h, w), `codes` (T, F, K) or `features` (P, D).

    Raises:
        ShardError: It is no sample of tokens, or is damaged.
    """
    place = f"{sample.get('__url__', 'a shard')}: {sample.get('__key__')}"
    key, _, span = str(sample.get("__key__")).rpartition("-")
    files = [data for name, data in sample.items() if name.endswith(SUFFIX)]
    if not files or not span.isdigit():
        raise ShardError(f"{place} is no sample of tokens; read the shards in the folders of a data set's tokens/")
    try:
        tokens = {track: tensor for data in files for track, tensor in load(data).items()}
    except (SafetensorError, KeyError) as error:
        raise ShardError(f"{place} is damaged ({error}); copy the shard again") from error
    return {"key": key, "span": int(span), **tokens}
