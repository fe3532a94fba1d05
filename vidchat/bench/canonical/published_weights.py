"""Reads published checkpoints as tensors only, and renames their parameters as in transformers."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from vidchat.bench.metric import BackendError

Rules = Iterable[tuple[str, str]]

# Parameter names of fairseq's wav2vec 2.0 and WavLM, as patterns, and the names in transformers.
FAIRSEQ = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"self_attn_layer_norm\.", "layer_norm."),
    (r"self_attn\.", "attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)  # fmt: skip


def read_weights(path: Path, *inside: str) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name.

    Args:
        path: Checkpoint.
        inside: Names of entries that may hold the state dict; the first that exists is read, else the file itself.

    Raises:
        BackendError: The file is not a checkpoint, or holds anything but tensors and plain data.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise BackendError(f"{path}: cannot be read as weights ({str(error).splitlines()[0]})") from None
    loaded = next((loaded[name] for name in inside if name in loaded), loaded) if isinstance(loaded, dict) else {}
    return {name: value for name, value in loaded.items() if isinstance(value, Tensor)}


def read_script(path: Path, device: str) -> torch.jit.ScriptModule:
    """Loads a TorchScript network for evaluation; raises `BackendError` if the file holds none."""
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0][:200]
        raise BackendError(f"{path}: cannot be read as TorchScript ({why}); download it again") from None


def renamed(name: str, rules: Rules) -> str:
    """Applies all rules (pattern, replacement) to a parameter's name, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
