"""Generation in bf16, computed as training in mixed precision computes it, without autocast.

A generated chunk is bound by reading weights, so these are cast once, and inputs where they meet them. What autocast
keeps in fp32 stays so: the residual stream, norms, rotary angles, times and the tokens that the flow head integrates.
Embeddings too, as only a few rows of a table are read, and code logits. Keys and values, and so their caches, are bf16.
Autocast itself would cast the weights anew in each call, into memory that a CUDA graph must not rely on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def to_bf16(model: nn.Module) -> None:
    """Cast the linear layers of a model, in place; it takes and gives what it took and gave before."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype != torch.bfloat16:
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_half)
        elif isinstance(module, nn.LayerNorm):  # the flow head's, on bf16 activations; RMSNorms see the fp32 stream
            module.register_forward_pre_hook(_full)


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device is a GPU with bf16 products in hardware."""
    device = torch.device(device)
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _half(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    return (inputs[0].to(torch.bfloat16),)


def _full(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    return (inputs[0].float(),)
