from __future__ import annotations

import copy

import torch

from tests.model.conftest import shape
from vidchat.model.compiled import compile_blocks


def gradients(model, batch, seed=0):
    """The loss and the gradients of one seeded training step."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model.loss(batch)["loss"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_compiled_training_keeps_losses_gradients_and_parameter_names(make_responder, make_batch):
    """`aot_eager` traces and differentiates as inductor does, but generates no code."""
    plain, batch = make_responder(backbone=shape(layers=1), depth=shape(layers=1)).train(), make_batch()
    compiled = copy.deepcopy(plain)
    blocks = compile_blocks(compiled, "aot_eager")
    assert blocks == 1 + 1 + 2 + len(plain.flow.denoiser.blocks), "backbone, depth, spatial, flow"
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for seed in range(2):  # another share is masked each time
        loss, expected = gradients(plain, batch, seed)
        own_loss, own = gradients(compiled, batch, seed)
        torch.testing.assert_close(own_loss, loss, atol=1e-5, rtol=1e-5)
        assert own.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(own[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
