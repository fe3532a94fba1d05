"""The whole model: what its outputs see, what its losses count, and what every ablation keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.conftest import CODES, change, conditioning, read_said, single
from vidchat.batch import UNKNOWN
from vidchat.layout import TurnSpan
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.noise import draw_hidden_chunks
from vidchat.model.objective import Objective

LISTENING = [TurnSpan("initiator", 4, 0), TurnSpan("responder", 4, 0)]


def test_codes_do_not_leak_from_the_future(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch(turns=[LISTENING] * 2)
    before = model.run_backbone(batch)
    for name, column in (("codes", 3), ("heard_codes", 2)):  # of step 3
        codes = getattr(batch, name).clone()
        codes[:, column] = (codes[:, column] + 1) % CODES.vocabulary
        after = model.run_backbone(replace(batch, **{name: codes}))
        assert torch.equal(before[:, :3], after[:, :3]), "outputs at steps 0..2 predict chunks 1..3"
        assert (before[:, 3] != after[:, 3]).any(-1).all(), "outputs at step 3 have read step 3"


def test_a_step_sees_all_of_itself(make_responder, make_batch):
    """The first token of the responder sees its last one and what is heard at the same time."""
    model, batch = make_responder().eval(), make_batch(turns=[LISTENING] * 2)
    batch.latents.requires_grad_()
    batch.heard_latents.requires_grad_()
    hidden = model.run_backbone(batch)[:, 1]
    hidden[:, 0].square().sum().backward()
    assert (batch.latents.grad[:, 1].abs() > 0).all()
    assert (batch.heard_latents.grad[:, 0].abs() > 0).all(), "every latent, also at the edge of the grid"
    assert batch.heard_latents.grad[:, 1:].abs().max() == 0


def test_heard_tokens_see_what_is_said_at_the_same_time(make_responder, make_batch):
    """Said 1 acts through heard 1 on the outputs at step 2 even where they do not see it themselves."""
    model, batch = make_responder().eval(), make_batch(turns=[LISTENING] * 2)
    seen, run = [], model.backbone.forward
    model.backbone.forward = lambda x, positions, mask, **rest: seen.append(mask) or run(x, positions, mask, **rest)
    model.run_backbone(batch)
    sees = seen[0].dense()[0, 0][-4 * 13 :, -4 * 13 :].unflatten(0, (4, 13)).unflatten(2, (4, 13))
    expected = torch.ones(4, 4).tril().bool()[:, None, :, None].expand_as(sees)
    assert torch.equal(sees, expected), "a step is one block of 5 heard and 8 said tokens"


@pytest.mark.parametrize("audio", [False, True])
@pytest.mark.parametrize("heard_ratio", [1, 2])
@pytest.mark.parametrize("grid", [(4, 4), (6, 10), (2, 6)])
def test_cached_reading_equals_uncached(make_responder, make_batch, audio, heard_ratio, grid):
    """With heard video at the backbone's patch or twice that, on grids that it does not divide."""
    changes = {} if audio else {"codes": None, "depth": None}
    changes["conditions"] = conditioning(turns=True, text=True)
    model, batch = make_responder(heard_ratio=heard_ratio, **changes).eval(), make_batch(turns=[LISTENING] * 2)
    batch.latents, batch.heard_latents = torch.randn(2, 5, 3, *grid), torch.randn(2, 4, 3, *grid)
    with torch.no_grad():
        uncached, state = model.run_backbone(batch), model.start(batch, window=10)
        rows, cols = (-(-side // (2 * heard_ratio)) for side in grid)
        assert state.cache.heard == rows * cols + 4 * audio
        for t in range(5):
            torch.testing.assert_close(state.hidden, uncached[:, t], atol=1e-5, rtol=1e-5)
            if t < 4:
                heard = Chunk(batch.heard_latents[:, t], batch.heard_codes[:, t])
                state = model.read_step(state, Chunk(batch.latents[:, t + 1], batch.codes[:, t + 1]), heard)


def test_a_heard_token_stands_at_the_time_and_place_of_what_it_covers(make_responder, make_batch):
    model, batch = make_responder(conditions=conditioning(turns=True)).eval(), make_batch(turns=[LISTENING] * 2)
    batch.latents, batch.heard_latents = torch.randn(2, 5, 3, 6, 10), torch.randn(2, 4, 3, 6, 10)
    steps = model.steps(batch, torch.zeros(2, 5), torch.tensor([7.0, 0.0]), torch.ones(2, 1, dtype=torch.bool))
    said = 3 * 5 + 4
    heard, own = steps.positions[0, said:].unflatten(0, (4, 6 + 4 + said))[2].split([6 + 4, said])  # step 3
    time = 7 + 3 * 4
    assert heard[:6].tolist() == [[time, row, col] for row in (7.5, 9.5) for col in (7.5, 9.5, 11.5)]
    assert own[:15].tolist() == [[time, 7.0 + row, 7.0 + col] for row in range(3) for col in range(5)]
    assert torch.equal(heard[6:], own[15:]), "codec frames of one instant share it"
    assert own[15:].tolist() == [[time - 3 + frame, 7, 7] for frame in range(4)]
    assert torch.equal(steps.positions[1], steps.positions[0] - 7), "time counts from the clock's start"


def test_a_model_without_audio_ignores_a_talker_who_is_unseen(make_responder, make_batch):
    changes = {"codes": None, "depth": None, "conditions": conditioning(turns=True)}
    model, batch = make_responder(**changes).eval(), make_batch(turns=[LISTENING] * 2)
    silent = replace(batch, heard_latents=None, heard_video=torch.zeros_like(batch.heard_video))
    alone = replace(batch, heard_latents=None, heard_codes=None, heard_steps=None, heard_video=None, heard_audio=None)
    with torch.no_grad():
        expected = model.run_backbone(alone)
        torch.testing.assert_close(model.run_backbone(silent), expected)
        state = model.start(batch, 9)
        for t in range(1, 4):
            state = model.read_step(state, Chunk(batch.latents[:, t]), Chunk(None, batch.heard_codes[:, t - 1]))
            torch.testing.assert_close(state.hidden, expected[:, t], atol=1e-5, rtol=1e-5)
        assert model.read_step(state, None, Chunk(None, batch.heard_codes[:, 3])).hidden is None


def test_padding_changes_nothing(make_responder, make_batch):
    """The outputs at real columns do not depend on values, nor on steps, at padded positions."""
    model, batch = make_responder().eval(), make_batch()
    before = model.run_backbone(batch)[batch.mask]
    for name, value in {"text": 3, "voice": 7, "scores": 9.0, "features": 9.0}.items():
        condition = batch.conditions[name]
        condition.values[~condition.mask] = value
    batch.heard_latents[~batch.heard_video] = batch.latents[~batch.mask] = 50.0
    batch.heard_codes[~batch.heard_audio] = batch.codes[~batch.mask] = 7
    batch.heard_steps[~batch.heard_video] = batch.steps[~batch.mask] = 2
    batch.stills[~batch.mask] = True
    torch.testing.assert_close(model.run_backbone(batch)[batch.mask], before)


def test_codes_of_stills_are_not_read(make_responder, make_batch):
    model, batch = make_responder(noise=None).eval(), make_batch()
    assert batch.stills.sum(1).tolist() == [2, 2]
    torch.manual_seed(0)
    before, losses = model.run_backbone(batch), model.loss(batch)
    batch.codes[batch.stills] = (batch.codes[batch.stills] + 1) % CODES.vocabulary
    assert torch.equal(model.run_backbone(batch), before)
    torch.manual_seed(0)
    model.run_backbone(batch)
    assert torch.equal(model.loss(batch)["loss"], losses["loss"]), "nor predicted"


@pytest.mark.parametrize("name", ["heard_latents", "heard_codes", "text", "voice", "scores", "features"])
def test_every_condition_matters_and_can_be_dropped(make_responder, make_batch, name):
    model, batch = make_responder().eval(), make_batch(turns=[LISTENING] * 2)

    def unconditional() -> torch.Tensor:
        with torch.no_grad():
            state = model.start(batch, 4, guidance=2.0)
            heard = Chunk(batch.heard_latents[:, 0], batch.heard_codes[:, 0])
            return model.read_step(state, Chunk(batch.latents[:, 1], batch.codes[:, 1]), heard).hidden[2:]

    before, null = model.run_backbone(batch), unconditional()
    change(batch, name, 2)
    assert not torch.equal(model.run_backbone(batch), before)
    torch.testing.assert_close(unconditional(), null)


@pytest.mark.parametrize("conditions", [None, conditioning(turns=True)])
def test_guidance_of_one_has_no_second_half(make_responder, make_batch, conditions):
    model, batch = make_responder(conditions=conditions).eval(), make_batch(turns=single(2))
    for guidance, copies in ((1.0, 2), (3.0, 4)):
        state = model.start(batch, 4, guidance)
        for _ in range(2):
            assert len(state.hidden) == len(state.origin) == copies
            assert len(state.cache._layers[0][0]) == len(state.cache.key_mask(0)) == copies
            assert len(state.reference) == len(state.last) == 2
            state = read_said(model, state, batch, 1)
        assert state.end.shape == (2,)


@pytest.mark.parametrize("grid", [False, True])
def test_a_chunk_needs_a_chunk_or_a_still_before_it(make_responder, make_batch, grid):
    model, batch = make_responder().eval(), make_batch(turns=[LISTENING] * 2)
    with torch.no_grad():
        heard = Chunk(batch.heard_latents[:, 0], batch.heard_codes[:, 0]) if grid else None
        state = model.read_step(model.start(batch, 4), None, heard)
        assert state.step == 1
        assert state.hidden is state.last is state.end is None
        with pytest.raises(ValueError, match="nothing can follow it"):
            model.generate_chunk(state, ChunkSampling())
        still = model.read_step(state, Chunk(batch.latents[:, 1], still=True))
    assert still.end is None
    assert torch.equal(still.last, batch.latents[:, 1])
    assert torch.equal(still.reference, batch.latents[:, 0]), "the reference stays that of step 0"


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
        model = make_responder(objective=Objective(video=0.0, end=0.0, first_codebook=weight), spatial=None).eval()
        losses[weight] = model.loss(batch)
        losses[weight]["loss"].backward()
    second = losses[0.0]["loss"]
    first = 2 * losses[1.0]["loss"] - second
    torch.testing.assert_close(losses[3.0]["loss"], (3 * first + second) / 4)
    torch.testing.assert_close(losses[3.0]["audio"], losses[1.0]["loss"].detach(), msg="the logged loss is unweighted")


def test_targets_are_not_noised_and_losses_ignore_padding(make_responder, make_batch):
    model, batch = make_responder(conditions=conditioning(turns=True)).eval(), make_batch(turns=single(5, less=2))
    torch.manual_seed(3)
    before = model.loss(batch)
    batch.latents[1, 4:] = 100.0  # the second answer has 3 chunks
    batch.codes[1, 4:] = 0
    batch.ends[1, 4:] = 1
    torch.manual_seed(3)
    after = model.loss(batch)
    assert before == after


def test_the_end_is_learnt_where_it_is_known(make_responder, make_batch):
    """Its mean is over all said chunks, so that batches of equal numbers of chunks add up."""
    model, batch = make_responder(noise=None).eval(), make_batch()
    batch.ends[:] = torch.tensor([[1, UNKNOWN, 0, 0, UNKNOWN, 0, 1], [UNKNOWN, UNKNOWN, 0, 1, 1, 1, 1]])
    seen = batch.targets.clone()
    assert seen.tolist() == [[False, True, True, True, True, True], [False, True, True, True, False, False]]
    with torch.no_grad():
        logits = model.end(model.run_backbone(batch).mean(2))[..., 0]
        terms = [-torch.sigmoid(-logits[0, [2, 3, 5]]).log(), -torch.sigmoid(logits[0, [6]]).log()]
        terms += [-torch.sigmoid(-logits[1, [2]]).log(), -torch.sigmoid(logits[1, [3, 4]]).log()]
        torch.testing.assert_close(model.loss(batch)["end"], torch.cat(terms).sum() / 8)
        batch.ends[:] = UNKNOWN
        assert model.loss(batch)["end"] == 0
    batch.ends = None
    losses = model.loss(batch)
    assert losses["end"] == 0
    losses["loss"].backward()
    assert model.end.weight.grad is not None, "else distributed training would stop"


def test_each_turn_is_learnt_and_no_still_is(make_responder, make_batch):
    """The weights of the columns in the video's and the audio's loss: 1 for chunks, 0 for stills and padding."""
    model, weights = make_responder(spatial=None), []
    turns = [TurnSpan("responder", 2), TurnSpan("initiator", 2), TurnSpan("responder", 1)]
    batch = make_batch(turns=[turns, [TurnSpan("initiator", 1), TurnSpan("responder", 2)]])
    video, audio = model.video_head.loss, model.depth.loss
    object.__setattr__(model.video_head, "loss", lambda *args: weights.append(args[-1]) or video(*args))
    model.depth.loss = lambda *args: weights.append(args[-1]) or audio(*args)
    model.loss(batch)
    for weight in weights:
        assert weight.view(2, 4).tolist() == [[1, 1, 0, 1], [0, 1, 1, 0]]
    assert len(weights) == 2


@pytest.mark.parametrize(("stills", "ends"), [(False, 1), (True, UNKNOWN)])
def test_a_still_is_read_without_noise_and_a_chunk_with_it(make_responder, make_batch, stills, ends):
    model, batch = make_responder(noise=0.9).eval(), make_batch(turns=single(2))
    with torch.no_grad():
        state = model.start(batch, 4)
        assert torch.equal(state.last, batch.latents[:, 0])
        codes = None if stills else batch.codes[:, 1]
        read = model.read_step(state, Chunk(batch.latents[:, 1], codes, stills), None, 0.5)
    assert torch.equal(read.last, batch.latents[:, 1]) == stills
    assert (read.end is None) == stills


def test_a_shift_by_one_chunk_is_noticed(make_responder, make_batch):
    """Outputs at t-1 are paired with chunk t as their target."""
    model, batch = make_responder(codes=None, depth=None, spatial=None).eval(), make_batch(turns=single(5))
    seen = []
    object.__setattr__(model.video_head, "loss", lambda *args: seen.append(args[:2]) or args[1].sum())
    model.loss(batch)
    inputs, targets = seen[0]
    assert torch.equal(targets.unflatten(0, (2, 5)), batch.latents[:, 1:])
    assert torch.equal(inputs.last.unflatten(0, (2, 5)), batch.latents[:, :-1])
    assert torch.equal(inputs.hidden.unflatten(0, (2, 5)), model.run_backbone(batch)[:, :-1])
    assert torch.equal(inputs.reference.unflatten(0, (2, 5)), batch.latents[:, :1].expand(-1, 5, -1, -1, -1))


@pytest.mark.parametrize("noise", [None, 0.5])
def test_generation_gives_the_spatial_transformer_what_training_gives(make_responder, make_batch, noise):
    """The local embeddings of every chunk are the same, cached or not."""
    model, batch = make_responder(noise=noise).eval(), make_batch(turns=single(5))
    local = []
    forward = model.spatial.forward
    model.spatial.forward = lambda context, *rest: local.append(context.local) or forward(context, *rest)
    with torch.no_grad():
        model.loss(batch)
        trained = local.pop().unflatten(0, (2, 5))
        state = model.start(batch, window=10)
        for t in range(5):
            model.generate_chunk(state, ChunkSampling(sets=1, flow_steps=2))
            torch.testing.assert_close(local.pop(), trained[:, t], atol=1e-5, rtol=1e-5)
            state = read_said(model, state, batch, t + 1)


def test_a_visual_token_is_given_the_reference_and_the_last_chunk_but_not_its_own(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch(turns=single(5))
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
    state = model.start(batch, window=4)
    latents, codes, still = model.generate_chunk(state, ChunkSampling(sets=3, flow_steps=2))
    assert not still
    assert latents.shape == (2, 3, 4, 4)
    assert (codes is not None and codes.shape == (2, 4, 2)) if audio else codes is None


def test_guidance_of_one_is_unguided_bitwise(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    drawn = []
    with torch.no_grad():
        for guidance in (1.0, 1.0 + 1e-9, 3.0):
            state = model.start(batch, 4, guidance)
            sampling = ChunkSampling(sets=3, flow_steps=2, guidance=guidance)
            generator = torch.Generator().manual_seed(0)
            drawn.append(model.generate_chunk(state, sampling, generator))
    torch.testing.assert_close(drawn[0][0], drawn[1][0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(drawn[0][0], drawn[2][0], atol=1e-4)


def test_a_missing_condition_is_named(make_responder, make_batch):
    model, batch = make_responder(), make_batch()
    del batch.conditions["text"]
    with pytest.raises(ValueError, match=r"lacks a condition of the model: ChunkBatch\.conditions\['text'\]"):
        model.loss(batch)


def test_a_grid_that_does_not_divide_is_refused(make_responder, make_batch):
    model, batch = make_responder(ratio=3), make_batch()
    with pytest.raises(ValueError, match="does not divide into patches of 3"):
        model.loss(batch)
