"""The bookkeeping of captured loops, with a stand-in for CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from vidchat.model import graphs
from vidchat.model.graphs import CapturedLoops
from vidchat.model.precision import to_bf16


class Replayed:
    """Like a CUDA graph: reads its own inputs, writes to its own output, and keeps the settings of its capture."""

    def __init__(self, loop, inputs, settings):
        self.loop, self.inputs, self.settings = loop, inputs, settings
        self.out = loop(*inputs, *settings)
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.out.copy_(self.loop(*self.inputs, *self.settings))


@pytest.fixture
def captures(monkeypatch):
    graphs_made = []

    def capture(loop, tensors, settings):
        graph = Replayed(loop, tuple(x.clone() for x in tensors), settings)
        graphs_made.append(graph)
        return graph, graph.inputs, graph.out

    monkeypatch.setattr(graphs, "_can_capture", lambda device: True)
    monkeypatch.setattr(graphs, "_capture", capture)
    return graphs_made


def scaled(x, y, factor):
    return factor * x + y


def shifted(x, y, factor):
    return x - y + factor


def test_every_loop_size_type_and_setting_has_one_graph(captures):
    loops = CapturedLoops()
    torch.manual_seed(0)
    for _ in range(2):
        for loop in (scaled, shifted):
            for size, dtype in ((2, torch.float32), (3, torch.float32), (2, torch.float64)):
                for factor in (2.0, 3.0):
                    x, y = torch.randn(2, size, 4, dtype=dtype).unbind()
                    assert torch.equal(loops.run(loop, (x, y), factor), loop(x, y, factor))
    assert [graph.replays for graph in captures] == [2] * 12


def test_a_result_outlives_the_next_replay(captures):
    loops, ones = CapturedLoops(), torch.ones(2)
    first = loops.run(scaled, (ones, ones), 1.0)
    loops.run(scaled, (5 * ones, ones), 1.0)
    assert first.tolist() == [2.0, 2.0]
    assert len(captures) == 1


def test_graphs_are_dropped_when_weights_move(captures):
    """Graphs read the weights at fixed addresses: new values there are read, weights elsewhere are not."""
    model, loops = torch.nn.Linear(2, 2), CapturedLoops()
    changes = [None, lambda: model.weight.data.mul_(2), lambda: to_bf16(model), None]
    for count, change in zip((1, 1, 2, 2), changes, strict=True):
        if change is not None:
            change()
        loops.check_weights(model)
        loops.run(scaled, (torch.ones(2), torch.ones(2)), 1.0)
        assert len(captures) == count


def test_a_loop_that_cannot_be_captured_runs_uncaptured_and_is_logged_once(captures, monkeypatch, caplog):
    capture = graphs._capture

    def refuse_one(loop, *rest):
        if loop is scaled:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return capture(loop, *rest)

    monkeypatch.setattr(graphs, "_capture", refuse_one)
    loops, ones = CapturedLoops(), torch.ones(2)
    for loop in (scaled, scaled, shifted):
        assert torch.equal(loops.run(loop, (ones, ones), 2.0), loop(ones, ones, 2.0))
    assert [record.getMessage() for record in caplog.records] == [
        "scaled runs without a CUDA graph: operation not permitted when stream is capturing"
    ]
    assert len(captures) == 1
