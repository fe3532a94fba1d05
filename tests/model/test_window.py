"""The window slides: a step sees the conditions, step 0, itself and its window, however often the ring has wrapped."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import change, shape
from tests.model.test_one_clock import read_by_steps
from vidchat.layout import TurnSpan

LONG = [TurnSpan("initiator", 8, 0), TurnSpan("responder", 8, 0)]  # heard and said in each of 8 steps
TURNS = [TurnSpan("initiator", 3), TurnSpan("responder", 2), TurnSpan("initiator", 2), TurnSpan("responder", 1)]


def outputs_at_step_8(model, batch, window: int) -> torch.Tensor:
    """The backbone's outputs after 8 steps have been read."""
    with torch.no_grad():
        return read_by_steps(model, batch, window)[8].hidden


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("turns", [LONG, TURNS], ids=["at the same time", "one after another"])
def test_step_8_sees_its_window_and_nothing_older(make_responder, make_batch, window, turns):
    """One layer: in a deeper model, an older step still acts through younger ones."""
    model = make_responder(backbone=shape(layers=1)).eval()
    before = outputs_at_step_8(model, make_batch(turns=[turns] * 2), window)
    for name in ("latents", "heard_latents", "heard_codes"):
        batch = make_batch(turns=[turns] * 2)
        steps = (batch.heard_steps if name.startswith("heard") else batch.steps)[0].tolist()
        for column, step in enumerate(steps):
            batch = make_batch(turns=[turns] * 2)
            value = getattr(batch, name)
            value[:, column] = (value[:, column] + 1) % 16 if name == "heard_codes" else value[:, column] + 1.0
            same = torch.equal(outputs_at_step_8(model, batch, window), before)
            assert same == (0 < step < 8 - window), f"{name} of step {step}"


@pytest.mark.parametrize("window", [1, 2])
def test_behind_the_window_the_pinned_tokens_keep_their_distance(make_responder, make_batch, window):
    """One layer: the outputs at step t are those of one pass over the pinned tokens and the window, moved together."""
    model, batch = make_responder(backbone=shape(layers=1)).eval(), make_batch(turns=[LONG] * 2)
    keep = torch.ones(2, dtype=torch.bool)
    with torch.no_grad():
        states = read_by_steps(model, batch, window)
        conditions = model.conditions(batch, model.embed, model.conditions.keep_all(keep))
        for last in range(1, 9):
            kept = [step for step in range(9) if step == 0 or last - window <= step <= last]
            near = batch.map(lambda value: value)
            columns = [column for column, step in enumerate(batch.steps[0].tolist()) if step in kept]
            heard = [column for column, step in enumerate(batch.heard_steps[0].tolist()) if step in kept]
            for name in ("latents", "codes", "stills", "mask", "ends"):
                setattr(near, name, getattr(batch, name)[:, columns])
            for name in ("heard_latents", "heard_codes", "heard_video", "heard_audio"):
                setattr(near, name, getattr(batch, name)[:, heard])
            gone = max(0, last - window - 1)
            near.steps = (batch.steps[:, columns] - gone).clamp(min=0)
            near.heard_steps = batch.heard_steps[:, heard] - gone
            steps = model.steps(near, torch.zeros(near.mask.shape), conditions.end, keep[:, None])
            outputs = model._run(conditions, steps, model._mask(conditions, steps))
            own = outputs.gather(1, steps.said[:, -1, :, None].expand(-1, -1, outputs.shape[-1]))
            torch.testing.assert_close(states[last].hidden, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["text", "voice", "features"])
def test_the_conditions_are_never_evicted(make_responder, make_batch, name):
    model, batch = make_responder(backbone=shape(layers=1)).eval(), make_batch(turns=[LONG] * 2)
    before = outputs_at_step_8(model, batch, 1)
    change(batch, name, 11)
    assert not torch.equal(outputs_at_step_8(model, batch, 1), before)
