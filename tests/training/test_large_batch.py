"""Accumulated batches have the gradient of one large batch, however long their answers are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

import vidchat.model.masked as masked
from tests import batches as made
from tests.generation.conftest import CONDITION, MODEL
from tests.modules import responder_module
from tests.training.fakes import make_trainer
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.data.loading.batches import pad
from vidchat.model.flow import FlowHead
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.training.responder_module import ResponderModule
from vidchat.training.totals import Totals

PLAIN = CONDITION | {"initiator": False, "voice": False, "scores": [], "drop": 0.0}


@pytest.fixture
def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn: a loss is then a function of the batch alone, and can be compared with another batch's."""

    def loss(self: FlowHead, target: Tensor, condition: Tensor) -> Tensor:
        times = torch.full((len(target),), 0.5)
        return (self.denoiser(0.5 * target, times, condition).float() - target).square().mean(1)

    def in_order(count: int, places: int, device: torch.device) -> Tensor:
        return torch.arange(places, device=device).expand(count, -1)

    monkeypatch.setattr(FlowHead, "loss", loss)
    monkeypatch.setattr(masked, "draw_order", in_order)
    monkeypatch.setattr(masked, "draw_masked_count", lambda tokens: tokens - 1)


def responder(**model: Any) -> ResponderModule:
    video = StackedVAE(channels=4, patch=4, widths=[8, 8], encoder_blocks=[1, 1], decoder_blocks=[1, 1])
    audio = StftCodec(code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2, vocabulary=16)
    settings = {"warmup": 0, "clip": 1e9}
    built = OmegaConf.create(MODEL | {"noise": None} | model)
    return responder_module(built, PLAIN, 25, 0, video, audio, ByteTokenizer(), optimizer=settings)


def answers(*lengths: int) -> ChunkBatch:
    drawn = [torch.Generator().manual_seed(length) for length in lengths]
    latents, mask = pad([torch.randn(n + 1, 4, 2, 2, generator=g) for n, g in zip(lengths, drawn, strict=True)])
    codes = pad([torch.randint(16, (n, 8, 2), generator=g) for n, g in zip(lengths, drawn, strict=True)])[0]
    words = torch.ones(len(lengths), 3, dtype=torch.long)
    return made.answers(latents, codes, mask[:, 1:], conditions={"text": ConditionValues(words, words.bool())})


class Gradient(L.Callback):
    """What the first step was made with."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        assert isinstance(pl_module, ResponderModule)
        gradients = [value.grad for value in pl_module.network.parameters()]
        self.gradient = torch.cat([value.flatten() for value in gradients if value is not None])
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def first_step(directory: Path, batches: list[ChunkBatch], **model: Any) -> Gradient:
    seen = Gradient()
    options = {"accumulate_grad_batches": len(batches), "limit_val_batches": 0}
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    make_trainer(directory, 1, [seen], **options).fit(responder(**model), loader)
    return seen


OBJECTIVE = {"_target_": "vidchat.model.objective.Objective", "first_codebook": 4, "video": 0.3}


@pytest.mark.parametrize("model", [{}, {"spatial": None}, {"objective": OBJECTIVE}, {"depth": None}])
@pytest.mark.parametrize("split", [[(12,), (2,)], [(2, 12), (5, 1)], [(7,), (1,), (3,), (12,)]])
def test_the_accumulated_gradient_is_the_large_batch_s(
    certain: None, tmp_path: Path, split: list[tuple[int, ...]], model: dict[str, Any]
) -> None:
    together = first_step(tmp_path / "a", [answers(*(n for part in split for n in part))], **model)
    apart = first_step(tmp_path / "b", [answers(*part) for part in split], **model)
    assert (apart.gradient - together.gradient).norm() < 2e-6 * together.gradient.norm()
    assert apart.metrics == pytest.approx(together.metrics, rel=1e-5)


def test_one_batch_alone_keeps_its_loss_and_gradient_bit_for_bit(certain: None, tmp_path: Path) -> None:
    batch, module = answers(12, 2, 5), responder()
    module.train()
    loss = module.losses(batch)["loss"]
    loss.backward()
    expected = torch.cat([value.grad.flatten() for value in module.network.parameters() if value.grad is not None])
    seen = first_step(tmp_path, [batch])
    assert seen.metrics["train/loss"] == float(loss.detach())
    assert torch.equal(seen.gradient, expected)


def test_a_step_predicts_as_many_tokens_of_each_of_its_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over a batch's predicted tokens could not be weighted by its chunks else."""
    drawn: list[int] = []
    count = masked.draw_masked_count

    def watched(tokens: int) -> int:
        drawn.append(count(100 * tokens))
        return count(tokens)

    monkeypatch.setattr(masked, "draw_masked_count", watched)
    options = {"accumulate_grad_batches": 3, "limit_val_batches": 0}
    loader = DataLoader([answers(2)] * 12, batch_size=None)  # type: ignore[arg-type]
    make_trainer(tmp_path, 4, [], **options).fit(responder(), loader)
    steps = [tuple(drawn[first : first + 3]) for first in range(0, 12, 3)]
    assert all(len(set(step)) == 1 for step in steps)
    assert len(set(steps)) == 4


def test_totals_weigh_by_what_was_counted() -> None:
    totals = Totals()
    for count, loss in ((12, 1.0), (2, 8.0), (0, torch.nan)):
        totals.add(torch.tensor(count), {"loss": torch.tensor(loss)})
    count, means = totals.gather()
    assert float(count) == 14
    assert float(means["loss"]) == pytest.approx((12 * 1 + 2 * 8) / 14)
    totals.add(torch.tensor(3), {"loss": torch.tensor(0.1)})
    count, means = totals.gather()
    assert (float(count), float(means["loss"])) == (3, float(torch.tensor(0.1)))
