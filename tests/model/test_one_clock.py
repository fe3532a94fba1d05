"""Training and generation lay out a dialogue alike, in every branch, and nothing sees the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.layout import TurnSpan
from vidchat.model.generation_state import Chunk, GenerationState
from vidchat.model.objective import Objective
from vidchat.model.responder import Responder

MakeResponder = Callable[..., Responder]
MakeBatch = Callable[..., ChunkBatch]

LAYOUTS = {
    "single": [TurnSpan("responder", 4)],
    "dialogue": [TurnSpan("initiator", 3), TurnSpan("responder", 4)],
    "listening": [TurnSpan("initiator", 4, 0), TurnSpan("responder", 4, 0)],
    "three turns": [
        TurnSpan("initiator", 2),
        TurnSpan("responder", 2),
        TurnSpan("initiator", 1, 5),
        TurnSpan("responder", 2, 7),
        TurnSpan("initiator", 2),
        TurnSpan("responder", 3),
    ],
    "interruption": [
        TurnSpan("initiator", 2),
        TurnSpan("responder", 4),
        TurnSpan("initiator", 3, 4),
        TurnSpan("responder", 2, 8),
    ],
    "the responder first": [TurnSpan("responder", 2), TurnSpan("initiator", 2), TurnSpan("responder", 2)],
}


def read_by_steps(
    model: Responder, batch: ChunkBatch, window: int = 50, guidance: float = 1.0
) -> list[GenerationState]:
    """Reads a batch of equal layouts step by step, as generation does; returns the state after every step."""
    states = [model.start(batch, window, guidance, undo=3)]
    said = {int(step): column for column, step in enumerate(batch.steps[0])}
    heard = {} if batch.heard_steps is None else {int(step): column for column, step in enumerate(batch.heard_steps[0])}
    for step in range(1, max([*said, *heard]) + 1):
        states.append(model.read_step(states[-1], chunk(batch, said.get(step)), heard_chunk(batch, heard.get(step))))
    return states


def chunk(batch: ChunkBatch, column: int | None) -> Chunk | None:
    if column is None:
        return None
    still = bool(batch.stills[0, column])
    codes = None if still or batch.codes is None else batch.codes[:, column]
    return Chunk(batch.latents[:, column], codes, still)


def heard_chunk(batch: ChunkBatch, column: int | None) -> Chunk | None:
    if column is None:
        return None
    latents, codes = (None if x is None else x[:, column] for x in (batch.heard_latents, batch.heard_codes))
    return Chunk(latents, codes)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", LAYOUTS)
def test_training_and_generation_give_the_same_outputs(
    make_responder: MakeResponder, make_batch: MakeBatch, name: str
) -> None:
    model, batch = make_responder().eval(), make_batch(turns=[LAYOUTS[name]] * 2)
    with torch.no_grad():
        whole = model.run_backbone(batch)
        states = read_by_steps(model, batch)
        for column, step in enumerate(batch.steps[0].tolist()):
            hidden = states[step].hidden
            assert hidden is not None
            assert close(hidden, whole[:, column])
            if not batch.stills[0, column]:
                assert close(states[step].end, model._end_logits(whole[:, column, None])[:, 0].sigmoid())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_copy_for_guidance_has_no_conditions_and_does_not_hear(
    make_responder: MakeResponder, make_batch: MakeBatch, name: str
) -> None:
    model, batch = make_responder().eval(), make_batch(turns=[LAYOUTS[name]] * 2)
    with torch.no_grad():
        states = read_by_steps(model, batch, guidance=2.0)
        origin = states[0].origin
        # Dropped tokens keep their places: only what is seen differs from the conditional copy.
        keeps = model.conditions.keep_all(torch.zeros(2, dtype=torch.bool))
        conditions = model.conditions(batch, model.embed, keeps)
        steps = model.steps(batch, torch.zeros(batch.mask.shape), origin[:2].float(), keeps["heard"])
        outputs = model._run(conditions, steps, model._mask(conditions, steps))
        for column, step in enumerate(batch.steps[0].tolist()):
            expected = outputs.gather(1, steps.said[:, column, :, None].expand(-1, -1, outputs.shape[-1]))
            assert close(states[step].hidden[2:], expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_sees_the_future_and_everything_past_is_seen(
    make_responder: MakeResponder, make_batch: MakeBatch, name: str
) -> None:
    model, batch = make_responder().eval(), make_batch(turns=[LAYOUTS[name]] * 2)
    batch.latents.requires_grad_()
    batch.heard_latents.requires_grad_()
    hidden = model.run_backbone(batch)
    for column, step in enumerate(batch.steps[0].tolist()):
        said, heard = torch.autograd.grad(
            hidden[:, column].sum(), (batch.latents, batch.heard_latents), retain_graph=True, allow_unused=True
        )
        heard = torch.zeros_like(batch.heard_latents) if heard is None else heard
        seen = said.abs().sum((0, 2, 3, 4)) > 0
        assert seen.tolist() == [s <= step for s in batch.steps[0].tolist()]
        if batch.heard_video[0].any():
            seen = heard.abs().sum((0, 2, 3, 4)) > 0
            assert seen.tolist() == [s <= step for s in batch.heard_steps[0].tolist()]


def test_dialogues_of_different_layouts_share_a_batch(make_responder: MakeResponder, make_batch: MakeBatch) -> None:
    model = make_responder().eval()
    names = ("interruption", "dialogue")
    both = make_batch(turns=[LAYOUTS[name] for name in names])
    with torch.no_grad():
        hidden = model.run_backbone(both)
        for row in range(2):
            n, u = int(both.mask[row].sum()), int(both.heard_video[row].sum())
            alone = both.map(lambda value, row=row: value[row : row + 1])
            alone = replace(
                alone,
                **{k: getattr(alone, k)[:, :n] for k in ("latents", "steps", "stills", "mask", "codes", "ends")},
                **{k: getattr(alone, f"{k}")[:, :u] for k in vars(alone) if k.startswith("heard_")},
            )
            assert close(model.run_backbone(alone)[0], hidden[row, :n])


def test_padding_changes_no_loss(make_responder: MakeResponder, make_batch: MakeBatch) -> None:
    model, batch = make_responder(noise=None).eval(), make_batch()
    for name in ("latents", "codes", "ends"):
        value = getattr(batch, name)
        changed = torch.where(batch.mask.view(*batch.mask.shape, *[1] * (value.dim() - 2)), value, value + 1)
        padded = replace(batch, **{name: changed % 16 if name == "codes" else changed})
        torch.manual_seed(0)
        expected = model.loss(batch)
        torch.manual_seed(0)
        assert model.loss(padded)["loss"] == expected["loss"]


@pytest.mark.parametrize("missing", ["video", "audio"])
def test_an_unseen_or_silent_talker_is_read_alike(
    make_responder: MakeResponder, make_batch: MakeBatch, missing: str
) -> None:
    model, batch = make_responder().eval(), make_batch(turns=[LAYOUTS["listening"]] * 2)
    with torch.no_grad():
        full = model.run_backbone(batch)
        hidden = replace(batch, **{f"heard_{missing}": torch.zeros_like(batch.heard_video)})
        absent = replace(hidden, **{"heard_latents" if missing == "video" else "heard_codes": None})
        masked = model.run_backbone(hidden)
        assert close(model.run_backbone(absent), masked)
        assert not close(masked[:, 1:], full[:, 1:])
        states = read_by_steps(model, absent)
        assert close(states[2].hidden, masked[:, 2])


@pytest.mark.parametrize("step", [3, 5, 9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_steps_that_are_taken_back_leave_no_trace(
    make_responder: MakeResponder, make_batch: MakeBatch, step: int, count: int
) -> None:
    model, batch = make_responder().eval(), make_batch(turns=[LAYOUTS["three turns"]] * 2)
    with torch.no_grad():
        expected = read_by_steps(model, batch, window=2)
        states = [model.start(batch, window=2, undo=3)]
        for now in range(1, len(expected)):
            states.append(read_again(model, batch, states[-1], now))
            if now == step:
                states[-1].cache.take_back(now, count)
                del states[-count:]
                for other in range(count):  # something else happens instead, and is taken back as well
                    said = Chunk(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 2, dtype=torch.long))
                    states.append(model.read_step(states[-1], said if other else None))
                states[-1].cache.take_back(now, count)
                del states[-count:]
                for again in range(now - count + 1, now + 1):
                    states.append(read_again(model, batch, states[-1], again))
        for a, b in zip(states, expected, strict=True):
            assert (a.hidden is None) == (b.hidden is None)
            assert a.hidden is None or close(a.hidden, b.hidden)


def read_again(model: Responder, batch: ChunkBatch, state: GenerationState, step: int) -> GenerationState:
    said = (batch.steps[0] == step).nonzero().flatten().tolist()
    heard = (batch.heard_steps[0] == step).nonzero().flatten().tolist()
    return model.read_step(
        state, chunk(batch, said[0] if said else None), heard_chunk(batch, heard[0] if heard else None)
    )


def test_an_hour_of_steps_sees_no_position_beyond_the_window(make_responder: MakeResponder) -> None:
    model, window = make_responder(conditions=None).eval(), 3
    constant = Chunk(torch.ones(1, 3, 4, 4), torch.ones(1, 4, 2, dtype=torch.long))
    with torch.no_grad():
        batch = ChunkBatch.start(torch.ones(1, 3, 4, 4))
        state = model.start(batch, window, undo=2)
        early = None
        for step in range(1, 200):
            state = model.read_step(state, constant)
            if step == 60:
                early = state.hidden
    # The same chunk for ever: only positions could make a difference.
    assert close(state.hidden, early)
    hour = 22_500 // state.cache.slots * state.cache.slots  # steps, a whole number of turns of the ring
    late = replace(state, step=state.step + hour)
    with torch.no_grad():
        for _ in range(30):
            late = model.read_step(late, constant)
    assert torch.allclose(late.hidden, early, atol=1e-4)


def test_the_cost_of_a_step_does_not_grow(make_responder: MakeResponder) -> None:
    model = make_responder(conditions=None).eval()
    state = model.start(ChunkBatch.start(torch.ones(1, 3, 4, 4)), window=4, undo=2)
    keys = []
    with torch.no_grad():
        for _ in range(40):
            state = model.read_step(state, Chunk(torch.ones(1, 3, 4, 4), torch.ones(1, 4, 2, dtype=torch.long)))
            keys.append(state.cache.key_mask(0).shape[-1])
    assert keys[6:] == [keys[6]] * len(keys[6:])


def test_a_model_that_does_not_listen_refuses_to_hear(make_responder: MakeResponder) -> None:
    model = make_responder(conditions=None).eval()
    state = model.start(ChunkBatch.start(torch.ones(1, 3, 4, 4)), window=4)
    with pytest.raises(ValueError, match="does not listen"):
        model.read_step(state, None, Chunk(torch.ones(1, 3, 4, 4)))


def test_own_chunks_replace_those_before_the_chosen_columns_only(
    make_responder: MakeResponder, make_batch: MakeBatch
) -> None:
    """Column 5 is the chunk before column 6; column 1 is a still, which is never redrawn."""
    model, batch = make_responder(objective=Objective(resample=1.0)).train(), make_batch()
    count = batch.targets.shape[1]
    chosen = torch.tensor([1, count + 2, 5])  # columns 2 and 6 of the first dialogue, 3 of the second
    latents = model._with_own_chunks(batch, chosen, None)
    changed = (latents != batch.latents).flatten(2).any(2).nonzero().tolist()
    assert changed == [[0, 5], [1, 2]]
    assert not latents.requires_grad


def test_training_on_own_chunks_has_the_true_targets(make_responder: MakeResponder, make_batch: MakeBatch) -> None:
    model = make_responder(objective=Objective(resample=1.0), noise=None).train()
    seen = []
    original = model.video_head.loss
    object.__setattr__(
        model.video_head,
        "loss",
        lambda inputs, targets, *rest: seen.append((inputs, targets)) or original(inputs, targets, *rest),
    )
    batch = make_batch()
    losses = model.loss(batch)
    losses["loss"].backward()
    (inputs, targets), *_ = seen
    assert torch.equal(targets, batch.latents[:, 1:].flatten(0, 1))
    assert not torch.equal(inputs.last, batch.latents[:, :-1].flatten(0, 1))
