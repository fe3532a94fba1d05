"""Blocks of a network through torch.compile, in place: norms, rotations and gates become few kernels.

Block by block and not as a whole, because the number of tokens in a step is drawn (the masked share), because attention
has kernels of its own, and because blocks of one shape then share one compilation.
"""

from __future__ import annotations

import torch
from torch import nn

from vidchat.model.flow import FlowBlock
from vidchat.model.transformer import Block

SHAPES = 64  # compilations of one block: stacks differ in width, mask and wanted tokens, with and without gradients


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compiles every transformer block and every block of the flow head; names of parameters stay as they are.

    Args:
        network: Whatever holds such blocks.
        backend: Of torch.compile; `inductor` needs a C++ compiler on a CPU and Triton on a GPU.

    Returns:
        How many blocks will be compiled, when they are first used.
    """
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    # Compiled whole, a model is split where DDP's gradients leave; a block is small, and would only fall to pieces.
    torch._dynamo.config.optimize_ddp = False
    blocks = [module for module in network.modules() if isinstance(module, Block | FlowBlock)]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
