"""Generation in bf16, with the numerics of training in mixed precision but without autocast.

The time of a generated chunk is that of reading weights, so the weights of linear layers are cast once, and their
inputs on the way in. All that autocast keeps in fp32 stays in fp32: the residual stream, norms, rotary angles, times
and the tokens that the flow head integrates. So do embeddings, of which only a few rows are read, and code logits. Keys
and values, and so their caches, are bf16. Autocast would cast the weights in every call, into memory that a CUDA graph
must not rely on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def to_bf16(model: nn.Module) -> None:
    """Casts the linear layers of a model in place; its inputs and outputs keep their types."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.dtype != torch.bfloat16:
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_cast_to_bf16)
        elif isinstance(module, nn.LayerNorm):  # in the flow head; RMSNorms read the fp32 residual stream
            module.register_forward_pre_hook(_cast_to_fp32)


def supports_bf16(device: torch.device | str) -> bool:
    """Returns whether a device is a GPU with bf16 matrix products in hardware."""
    device = torch.device(device)
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def _cast_to_bf16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    return (inputs[0].to(torch.bfloat16),)


def _cast_to_fp32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
    return (inputs[0].float(),)
