from __future__ import annotations

import torch

from tests.model.conftest import shape
from vidchat.model.transformer import Shape, Transformer


def test_under_autocast_the_residual_stream_stays_in_full_precision():
    stack, seen = Transformer(shape(3)), []
    for block in stack.layers:
        block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        out = stack(torch.randn(2, 5, 16).bfloat16(), torch.zeros(2, 5, 3))
    assert {*seen, out.dtype} == {torch.float32}


def test_recomputing_stores_only_the_inputs_of_blocks():
    """Fewer tensors are stored for the backward pass; the gradients are compared in `test_cost.py`."""
    stored = []
    for recompute in (False, True):
        stack = Transformer(Shape(**{**vars(shape(3)), "recompute": recompute})).train()
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x):
            stack(torch.randn(2, 50, 16), torch.zeros(2, 50, 3))
        stored.append(sum(sizes))
    assert stored[1] < stored[0] / 3


def test_projections_into_the_residual_stream_start_smaller_with_depth():
    """Unit-variance outputs elsewhere; sums of 2 x layers such projections then have the variance of one."""
    stack = Transformer(Shape(width=64, layers=8, heads=4, kv_heads=2, head_dim=16, mlp_width=128))
    block = stack.layers[3]
    for linear, gain in [
        (block.self_attn.q_proj, 1.0), (block.mlp.up_proj, 1.0), (block.self_attn.o_proj, 1 / 4),
        (block.mlp.down_proj, 1 / 4),
    ]:  # fmt: skip
        spread = linear(torch.randn(2000, linear.in_features)).std().item()
        assert abs(spread / gain - 1) < 0.1
