from __future__ import annotations

import pytest
import torch

from tests.model.conftest import CODES, change, conditioning, shape
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.noise import draw_hidden_chunks
from vidchat.model.objective import Objective


@pytest.mark.parametrize("chunk", range(1, 5))
def test_no_leak_from_the_future(make_responder, make_batch, chunk):
    """The gradient of the outputs that predict chunk t is exactly zero at chunk t and all later ones."""
    model, batch = make_responder().eval(), make_batch()
    batch.latents.requires_grad_()
    model.run_backbone(batch)[:, chunk - 1].square().sum().backward()
    gradient = batch.latents.grad
    assert gradient[:, chunk:].abs().max() == 0
    assert (gradient[:, :chunk].flatten(2).abs().amax(-1) > 0).all(), "every earlier chunk, the reference too, is seen"


def test_codes_do_not_leak_from_the_future(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    before = model.run_backbone(batch)
    batch.codes[:, 2] = (batch.codes[:, 2] + 1) % CODES.vocabulary  # codes of chunk 3
    after = model.run_backbone(batch)
    assert torch.equal(before[:, :3], after[:, :3]), "outputs at chunks 0..2 predict chunks 1..3"
    assert (before[:, 3] != after[:, 3]).any(), "outputs at chunk 3 have read chunk 3"


def test_a_chunk_sees_all_of_itself(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    batch.latents.requires_grad_()
    hidden = model.run_backbone(batch)[:, 1]  # outputs at chunk 1
    hidden[:, 0].square().sum().backward()  # its first token
    assert (batch.latents.grad[:, 1].flatten(2).abs().amax() > 0).all()
    assert batch.latents.grad[0, 1, :, -1, -1].abs().max() > 0, "the first token sees the last one"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("audio", [False, True])
def test_cached_reading_equals_uncached(make_responder, make_batch, padded, audio):
    changes = {} if audio else {"codes": None, "depth": None}
    model, batch = make_responder(**changes).eval(), make_batch(padded=padded)
    with torch.no_grad():
        uncached = model.run_backbone(batch)
        state = model.prefill(batch, window=10)
        for t in range(5):
            torch.testing.assert_close(state.hidden, uncached[:, t], atol=1e-5, rtol=1e-5)
            state = model.append_chunk(state, batch.latents[:, t + 1], batch.codes[:, t] if audio else None)


def test_the_window_slides_past_the_end_of_the_ring(make_responder, make_batch):
    """With a window of 2, the outputs at chunk t do not depend on chunks before t-2.

    One layer: in a deeper model, chunk t-4 still acts through chunk t-2.
    """
    model, batch = make_responder(backbone=shape(layers=1)).eval(), make_batch(chunks=9, padded=False)
    with torch.no_grad():
        state = model.prefill(batch, window=2)
        for t in range(1, 9):
            state = model.append_chunk(state, batch.latents[:, t], batch.codes[:, t - 1])
        wide = model.prefill(batch, window=20)
        for t in range(1, 9):
            wide = model.append_chunk(wide, batch.latents[:, t], batch.codes[:, t - 1])
        changed = make_batch(chunks=9, padded=False)
        changed.latents[:, 1:6] = 100.0  # chunks 1..5 are out of chunk 8's window
        other = model.prefill(changed, window=2)
        for t in range(1, 9):
            other = model.append_chunk(other, changed.latents[:, t], changed.codes[:, t - 1])
    assert torch.equal(state.hidden, other.hidden)
    assert not torch.allclose(state.hidden, wide.hidden, atol=1e-4)


def test_the_reference_is_never_evicted(make_responder, make_batch):
    model, batch = make_responder(backbone=shape(layers=1)).eval(), make_batch(chunks=9, padded=False)
    outputs = []
    for scale in (1.0, 2.0):
        batch.latents[:, 0] *= scale
        with torch.no_grad():
            state = model.prefill(batch, window=1)
            for t in range(1, 9):
                state = model.append_chunk(state, batch.latents[:, t], batch.codes[:, t - 1])
        outputs.append(state.hidden)
    assert not torch.equal(*outputs)


def test_padding_changes_nothing(make_responder, make_batch):
    """The outputs do not depend on values at padded positions of the conditions."""
    model, batch = make_responder().eval(), make_batch()
    before = model.run_backbone(batch)
    for name, value in {"text": 3, "voice": 7, "scores": 9.0, "features": 9.0}.items():
        condition = batch.conditions[name]
        condition.values[~condition.mask] = value
    batch.turn_latents[~batch.turn_mask] = 50.0
    batch.turn_codes[~batch.turn_mask] = 7
    torch.testing.assert_close(model.run_backbone(batch), before)


@pytest.mark.parametrize("name", ["turn_latents", "turn_codes", "text", "voice", "scores", "features"])
def test_every_condition_matters_and_can_be_dropped(make_responder, make_batch, name):
    model, batch = make_responder().eval(), make_batch()
    before, null = model.run_backbone(batch), model.prefill(batch, 4, guidance=2.0).hidden[2:]
    change(batch, name, 2)
    assert not torch.equal(model.run_backbone(batch), before)
    torch.testing.assert_close(model.prefill(batch, 4, guidance=2.0).hidden[2:], null)


def test_noise_level_zero_is_bitwise_no_noise(make_responder, make_batch):
    noisy, batch = make_responder(noise=0.5).eval(), make_batch()
    clean = make_responder(noise=None).eval()
    clean.load_state_dict(noisy.state_dict(), strict=False)
    assert torch.equal(noisy.run_backbone(batch), clean.run_backbone(batch))
    noisy.train()
    assert not torch.equal(noisy.run_backbone(batch), clean.run_backbone(batch))


def test_hidden_codes_are_not_seen_and_none_are_hidden_in_evaluation(make_responder, make_batch):
    model, batch = make_responder(noise=None, objective=Objective(code_dropout=1.0)), make_batch()
    clean = make_responder(noise=None, conditions=model.conditions.conditioning)
    assert torch.equal(model.eval().run_backbone(batch), clean.eval().run_backbone(batch))
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    hidden[:, 1] = True
    roles = torch.ones(2, 4, dtype=torch.long)
    changed = batch.codes.clone()
    changed[:, 1] = (changed[:, 1] + 1) % CODES.vocabulary
    seen = [model.embed.embed_codes(codes[:, :4], roles, hidden) for codes in (batch.codes, changed)]
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], model.embed.embed_codes(batch.codes[:, :4], roles))


def test_losses_stay_in_full_precision_under_autocast(make_responder, make_batch):
    model, batch = make_responder(objective=Objective(first_codebook=3.0)).eval(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(batch)
    assert {name for name, value in losses.items() if value.dtype != torch.float32} == set()


def test_a_share_of_each_answer_is_hidden():
    torch.manual_seed(0)
    hidden = draw_hidden_chunks(4000, 20, 0.8, torch.device("cpu")).float()
    assert hidden.mean() == pytest.approx(0.4, abs=0.01)
    assert hidden.mean(1).std() == pytest.approx(0.8 / 12**0.5, abs=0.03), "the share differs from answer to answer"


def test_the_first_codebook_has_its_weight(make_responder, make_batch):
    batch, losses = make_batch(), {}
    for weight in (0.0, 1.0, 3.0):
        model = make_responder(objective=Objective(video=0.0, first_codebook=weight), spatial=None).eval()
        losses[weight] = model.loss(batch)
        losses[weight]["loss"].backward()
    second = losses[0.0]["loss"]
    first = 2 * losses[1.0]["loss"] - second
    torch.testing.assert_close(losses[3.0]["loss"], (3 * first + second) / 4)
    torch.testing.assert_close(losses[3.0]["audio"], losses[1.0]["loss"].detach(), msg="the logged loss is unweighted")


def test_targets_are_not_noised_and_losses_ignore_padding(make_responder, make_batch):
    model, batch = make_responder(conditions=conditioning(turns=True)).eval(), make_batch()
    torch.manual_seed(3)
    before = model.loss(batch)
    batch.latents[1, 4:] = 100.0  # the second answer has 3 chunks
    batch.codes[1, 3:] = 0
    torch.manual_seed(3)
    after = model.loss(batch)
    assert before["audio"] == after["audio"]
    assert before["video"] == after["video"]


def test_a_shift_by_one_chunk_is_noticed(make_responder, make_batch):
    """Outputs at t-1 are paired with chunk t as their target."""
    model, batch = make_responder(codes=None, depth=None, spatial=None).eval(), make_batch(padded=False)
    seen = {}
    model._video_loss = lambda inputs, targets, weight: seen.update(targets=targets) or targets.sum()
    model.loss(batch)
    targets = seen["targets"].unflatten(0, (2, 5))
    assert torch.equal(targets[:, 0], batch.latents[:, 1])
    assert torch.equal(targets[:, -1], batch.latents[:, -1])


@pytest.mark.parametrize("noise", [None, 0.5])
def test_generation_gives_the_spatial_transformer_what_training_gives(make_responder, make_batch, noise):
    """The local embeddings of every chunk are the same, cached or not."""
    model, batch = make_responder(noise=noise).eval(), make_batch(padded=False)
    local = []
    forward = model.spatial.forward
    model.spatial.forward = lambda context, *rest: local.append(context.local) or forward(context, *rest)
    with torch.no_grad():
        model.loss(batch)
        trained = local.pop().unflatten(0, (2, 5))
        state = model.prefill(batch, window=10)
        for t in range(5):
            model.generate_chunk(state, ChunkSampling(sets=1, flow_steps=2))
            torch.testing.assert_close(local.pop(), trained[:, t], atol=1e-5, rtol=1e-5)
            state = model.append_chunk(state, batch.latents[:, t + 1], batch.codes[:, t])


def test_a_visual_token_is_given_the_reference_and_the_last_chunk_but_not_its_own(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch(padded=False)
    batch.latents.requires_grad_()
    local = []
    forward = model.spatial.forward
    model.spatial.forward = lambda context, *rest: local.append(context.local) or forward(context, *rest)
    model.loss(batch)
    local[0].unflatten(0, (2, 5))[:, 2].square().sum().backward()  # inputs for chunk 3
    gradient = batch.latents.grad.flatten(2).abs().amax(-1)
    assert (gradient[:, :3] > 0).all()
    assert gradient[:, 3:].max() == 0


def test_training_on_some_chunks_estimates_the_loss_on_all(make_responder, make_batch):
    model, batch = make_responder(objective=Objective(spatial_chunks=4)).eval(), make_batch()
    full = make_responder().eval()
    with torch.no_grad():
        estimate = torch.stack([model.loss(batch)["video"] for _ in range(200)]).mean()
        expected = torch.stack([full.loss(batch)["video"] for _ in range(200)]).mean()
    torch.testing.assert_close(estimate, expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("change", [{}, {"spatial": None}, {"set_causal": True}], ids=str)
@pytest.mark.parametrize("audio", [True, False])
def test_every_ablation_trains_and_generates(make_responder, make_batch, change, audio):
    changes = {} if audio else {"codes": None, "depth": None}
    model = make_responder(**changes, **change)
    batch = make_batch()
    model.loss(batch)["loss"].backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not unused, "a parameter without a gradient has no effect on the loss"
    model.eval()
    state = model.prefill(batch, window=4)
    latents, codes = model.generate_chunk(state, ChunkSampling(sets=3, flow_steps=2))
    assert latents.shape == (2, 3, 4, 4)
    assert (codes is not None and codes.shape == (2, 4, 2)) if audio else codes is None


def test_guidance_of_one_is_unguided_bitwise(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    drawn = []
    with torch.no_grad():
        for guidance in (1.0, 1.0 + 1e-9, 3.0):
            state = model.prefill(batch, 4, guidance)
            sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance)
            generator = torch.Generator().manual_seed(0)
            drawn.append(model.generate_chunk(state, sampling, generator))
    torch.testing.assert_close(drawn[0][0], drawn[1][0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(drawn[0][0], drawn[2][0], atol=1e-4)


def test_a_missing_condition_is_named(make_responder, make_batch):
    model, batch = make_responder(), make_batch()
    del batch.conditions["text"]
    with pytest.raises(ValueError, match=r"ChunkBatch\.conditions\['text'\] is missing"):
        model.loss(batch)
    batch = make_batch()
    batch.turn_latents = None
    with pytest.raises(ValueError, match="turn_latents"):
        model.loss(batch)


def test_a_grid_that_does_not_divide_is_refused(make_responder, make_batch):
    model, batch = make_responder(ratio=3), make_batch()
    with pytest.raises(ValueError, match="does not divide into patches of 3"):
        model.loss(batch)
