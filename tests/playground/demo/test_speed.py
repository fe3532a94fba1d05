from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidchat.playground.demo import speed
from vidchat.release import load_release

SHIPPED = Path(__file__).parents[3] / "checkpoints" / "demo"


def test_measuring_a_step_leaves_the_model_unchanged(monkeypatch):
    monkeypatch.setattr(speed, "BATCH", 1)
    release = load_release(SHIPPED)
    before = {name: value.clone() for name, value in release.responder.state_dict().items()}
    assert speed.measure_step(release, 1, "32-true") > 0
    assert not release.responder.training
    assert all(value.grad is None for value in release.responder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in release.responder.state_dict().items())


def test_measuring_an_encounter_renders_and_encodes_it():
    pytest.importorskip("espeakng_loader", reason="voices need the extra 'demo'")
    assert 0 < speed.measure_encounter(load_release(SHIPPED)) < 60


def test_the_fastest_threads_and_precision_are_chosen(monkeypatch):
    times = {(4, "bf16-mixed"): 2.0, (4, "32-true"): 3.0, (1, "bf16-mixed"): 0.7}
    monkeypatch.setattr(speed, "measure_step", lambda release, threads, precision: times[threads, precision])
    monkeypatch.setattr(speed, "bf16_is_faster", lambda: True)
    monkeypatch.setattr(speed.os, "cpu_count", lambda: 4)
    threads = torch.get_num_threads()
    assert speed.measure_training(None) == (0.7, 1, "bf16-mixed")
    assert torch.get_num_threads() == threads
