from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.batches import answers
from vidchat.training.progress import StepLines, Throughput


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def trainer(**values: Any) -> Any:
    loop = SimpleNamespace(_should_accumulate=lambda: False)
    defaults = {"fit_loop": loop, "global_step": 0, "log_every_n_steps": 2, "world_size": 1, "is_global_zero": True}
    return SimpleNamespace(**(defaults | values))


def test_rates_count_steps_chunks_and_waiting_but_no_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two micro-batches: 1 s of work and 2 s of waiting for each but the first, and a long validation."""
    clock, logged, speed = Clock(monkeypatch), [], Throughput()
    run, module = trainer(world_size=3), SimpleNamespace(log_dict=lambda rates, **_: logged.append(rates))
    mask = torch.tensor([[True, True], [True, False]])
    batch = answers(torch.zeros(2, 3, 1, 1, 1), mask=mask, heard_latents=torch.zeros(2, 4, 1, 1, 1))
    for micro in range(4):
        clock.now += 2.0
        speed.on_train_batch_start(run, module, batch, micro)
        clock.now += 1.0
        run.fit_loop._should_accumulate = lambda micro=micro: micro % 2 == 0
        run.global_step += micro % 2
        speed.on_train_batch_end(run, module, None, batch, micro)
        if micro == 1:
            clock.now += 100.0
            speed.on_validation_end(run, module)
    seconds, waited = 4 * 1.0 + 2 * 2.0, 2 * 2.0
    assert logged == [
        {
            "speed/steps_per_s": pytest.approx(2 / seconds),
            "speed/data_wait": pytest.approx(waited / seconds),
            "speed/chunks_per_s": pytest.approx(4 * 3 * 3 / seconds),
        }
    ]


def test_the_time_left_is_of_the_steps_of_this_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock, lines = Clock(monkeypatch), StepLines(every=2)
    run = trainer(global_step=10, max_steps=50, callback_metrics={"train/loss": 0.25, "other": 1.0})
    lines.on_train_start(run, None)
    for _ in range(3):
        clock.now += 2.0
        run.global_step += 1
        lines.on_train_batch_end(run, None)
    assert [record.getMessage() for record in caplog.records] == ["step 12/50  loss 0.25  left 1:16"]
