"""Compiles the blocks of a network in place with torch.compile: norms, rotations and gates become a few kernels.

Blocks are compiled one by one, because the number of tokens in a step is random (the masked share), because attention
has its own kernels, and because blocks of one shape then share one compilation.
"""

from __future__ import annotations

import torch
from torch import nn

from vidchat.model.flow import FlowBlock
from vidchat.model.transformer import Block

COMPILATIONS = 64  # limit per block: stacks differ in width, mask and outputs, with and without gradients


def compile_blocks(network: nn.Module, backend: str = "inductor") -> int:
    """Compiles every transformer block and every block of the flow head; parameters keep their names.

    Args:
        network: A module that contains such blocks.
        backend: Backend of torch.compile; `inductor` needs a C++ compiler on a CPU and Triton on a GPU.

    Returns:
        The number of blocks, each of which is compiled at its first use.
    """
    torch._dynamo.config.recompile_limit = max(COMPILATIONS, torch._dynamo.config.recompile_limit)
    # DDP's optimizer splits compiled graphs at its gradient buckets; a block is too small to gain from that.
    torch._dynamo.config.optimize_ddp = False
    blocks = [module for module in network.modules() if isinstance(module, Block | FlowBlock)]
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
