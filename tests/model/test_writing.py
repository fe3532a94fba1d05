"""Generation of a chunk set by set, and the agreement of training with it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import Tensor
from torch.nn.functional import rms_norm

from tests.model.conftest import conditioning, read_said, single
from vidchat.batch import INITIATOR, RESPONDER, VOICE
from vidchat.model.chunks import patchify
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.masked import draw_masked_count
from vidchat.model.responder import Objective
from vidchat.model.spatial import SpatialContext, draw_order, set_sizes


@dataclass
class Watched:
    """Recorded inputs of the spatial transformer and the flow head, and the tokens that the head drew."""

    inputs: list[tuple[SpatialContext, Tensor, Tensor]] = field(default_factory=list)  # context, order, tokens
    visible: list[tuple[int, int | None]] = field(default_factory=list)  # and the size of the next set
    conditions: list[Tensor] = field(default_factory=list)
    drawn: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)


def watch(model) -> Watched:
    watched = Watched()
    forward, sample, loss = model.spatial.forward, model.flow.sample, model.flow.loss

    def spatial(context, order, tokens, visible, size=None):
        watched.inputs.append((context, order, tokens.clone()))
        watched.visible.append((visible, size))
        return forward(context, order, tokens, visible, size)

    def head(condition, *rest):
        watched.conditions.append(condition)
        watched.drawn.append(sample(condition, *rest))
        return watched.drawn[-1]

    def training_pass(target, condition):
        watched.targets.append(target)
        watched.conditions.append(condition)
        return loss(target, condition)

    model.spatial.forward, model.flow.sample, model.flow.loss = spatial, head, training_pass
    return watched


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_chunk_is_generated_set_by_set(make_responder, make_batch, guidance):
    """Each set is drawn from the spatial transformer's outputs given all earlier sets, and put at its positions."""
    model, batch = make_responder().eval(), make_batch()
    copies = 1 if guidance == 1 else 2
    watched = watch(model)
    with torch.no_grad():
        state = model.start(batch, 4, guidance)
        latents, *_ = model.generate_chunk(state, ChunkSampling(sets=4, flow_steps=2, guidance=guidance))
        sizes = set_sizes(16, 4)
        assert [size for _, size in watched.visible] == sizes
        assert [visible for visible, _ in watched.visible] == [sum(sizes[:i]) for i in range(4)]
        order = watched.inputs[0][1]
        assert torch.equal(order[:2].sort(-1).values, torch.arange(16).expand(2, -1))
        drawn = torch.cat([each.view(2, size, 3) for each, size in zip(watched.drawn, sizes, strict=True)], dim=1)
        for (context, same, tokens), (visible, size), condition in zip(
            watched.inputs, watched.visible, watched.conditions, strict=True
        ):
            assert torch.equal(same, order[:2].repeat(copies, 1)), "one order for all sets, and for both halves"
            known = tokens.gather(1, same[:, :visible, None].expand(-1, -1, 3))
            assert torch.equal(known, drawn[:, :visible].repeat(copies, 1, 1)), "known tokens are those drawn before"
            full = type(model.spatial).forward(model.spatial, context, same, tokens, visible)[:, :size].flatten(0, 1)
            torch.testing.assert_close(
                condition, full, msg="the head is given the outputs at the positions of the next set"
            )
    assert torch.equal(patchify(latents, 1).gather(1, order[:2, :, None].expand(-1, -1, 3)), drawn)


def test_the_head_learns_masked_tokens_at_their_own_positions(make_responder, make_batch):
    """Targets are the tokens hidden from the spatial transformer, in the order of its outputs."""
    model, batch = make_responder().eval(), make_batch(turns=single(5))
    watched = watch(model)
    for _ in range(10):
        model.loss(batch)
    assert max(visible for visible, _ in watched.visible) > 0
    for (_, order, tokens), (visible, size), target in zip(
        watched.inputs, watched.visible, watched.targets, strict=True
    ):
        assert size is None
        assert torch.equal(tokens, patchify(batch.latents[:, 1:].flatten(0, 1), 1))
        assert torch.equal(target, tokens.gather(1, order[:, visible:, None].expand(-1, -1, 3)).flatten(0, 1))


def test_the_video_of_a_chunk_is_given_its_codes(make_responder, make_batch):
    """The codes of chunk t enter the context of chunk t only, in training as in generation."""
    model, batch = make_responder().eval(), make_batch(turns=single(5))
    watched = watch(model)
    with torch.no_grad():
        model.loss(batch)
        trained = watched.inputs.pop()[0].prefix.unflatten(0, (2, 5))
        state = model.start(batch, window=10)
        for t in range(5):
            model.depth.sample = lambda *_, t=t: batch.codes[:, t + 1]
            model.generate_chunk(state, ChunkSampling(sets=1, flow_steps=2))
            torch.testing.assert_close(watched.inputs.pop()[0].prefix, trained[:, t], atol=1e-5, rtol=1e-5)
            state = read_said(model, state, batch, t + 1)
        batch.codes[:, -1] = (batch.codes[:, -1] + 1) % 16  # read by no other chunk
        model.loss(batch)
        other = watched.inputs.pop()[0].prefix.unflatten(0, (2, 5))
    assert torch.equal(other[:, :4], trained[:, :4])
    assert torch.equal(other[:, 4, :4], trained[:, 4, :4]), "the backbone's visual outputs are without codes"
    assert (other[:, 4, 4:] - trained[:, 4, 4:]).abs().amax(-1).min() > 1e-3, "each audio token has its own"


def test_training_reads_noisy_history_and_predicts_clean_chunks(make_responder, make_batch):
    """The local embeddings have the last chunk as noisy as the backbone read it; reference and targets are clean."""
    model, batch = make_responder(noise=0.9).train(), make_batch(turns=single(5))
    watched, inputs, mixed = watch(model), [], []
    mix = model.noise.mix
    model.noise.mix = lambda *inputs: mixed.append(mix(*inputs)) or mixed[-1]
    model.spatial.seen.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model.loss(batch)
    reference, last = inputs[0].unflatten(0, (2, 5)).chunk(2, dim=-1)
    assert torch.equal(reference, patchify(batch.latents[:, :1], 1).expand_as(reference))
    assert torch.equal(last, patchify(mixed[0][:, :-1], 1))
    assert not torch.allclose(last, patchify(batch.latents[:, :-1], 1), atol=0.1)
    assert torch.equal(watched.inputs[0][2], patchify(batch.latents[:, 1:].flatten(0, 1), 1))


def test_generation_reads_and_stores_the_same_noisy_chunk(make_responder, make_batch):
    """Noise of the level is added, the level is embedded, and the noisy chunk is stored; the noise has a seed."""
    model, batch = make_responder(noise=0.9).eval(), make_batch(turns=single(5))
    with torch.no_grad():

        def read(level: float, seed: int):
            generator = torch.Generator().manual_seed(seed)
            state = model.start(batch, 4)
            return read_said(model, state, batch, 1, level, generator)

        clean, noisy, again, other = read(0.0, 1), read(0.5, 1), read(0.5, 1), read(0.5, 2)
        assert torch.equal(clean.last, batch.latents[:, 1])
        assert torch.equal(noisy.last, again.last)
        assert not torch.allclose(noisy.last, clean.last, atol=0.1)
        assert not torch.allclose(noisy.last, other.last, atol=0.1)
        # The stored chunk, read at its level without further noise, gives the same outputs; read as clean, others.
        model.noise.mix = lambda latents, levels, generator=None: latents
        batch.latents[:, 1] = noisy.last
        torch.testing.assert_close(read(0.5, 3).hidden, noisy.hidden)
        assert not torch.allclose(read(0.0, 3).hidden, noisy.hidden, atol=1e-3)


def test_video_is_generated_from_the_backbone_s_visual_outputs(make_responder, make_batch):
    """The first S_b outputs of a chunk enter the prefix beside the audio, and the local embeddings."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    watched = watch(model)
    with torch.no_grad():
        state = model.start(batch, 4)
        _, codes, _ = model.generate_chunk(state, ChunkSampling(sets=1, flow_steps=2))
        visual, audio = state.hidden[:, :4], state.hidden[:, 4:]
        prefix, local, _ = watched.inputs[0][0]
        expected = torch.cat([visual, audio + rms_norm(model.embed.codes(codes), (16,))], dim=1)
        torch.testing.assert_close(prefix, model.spatial.context(expected))
        known = patchify(torch.cat([batch.latents[:, 0], batch.latents[:, 0]], dim=1), 1)
        torch.testing.assert_close(local, model.spatial.places(visual, (2, 2)) + model.spatial.seen(known))


def test_every_real_chunk_counts_the_same(make_responder, make_batch):
    """A chunk's loss is the mean over its masked tokens, the batch's the mean over chunks without padding."""
    model, batch = make_responder().eval(), make_batch(turns=single(5, less=2))
    seen = []

    def chunk_numbers(target, condition):
        seen.append(len(target) // 10)
        return torch.arange(10.0).repeat_interleave(seen[-1])  # the loss of chunk n is n

    model.flow.loss = chunk_numbers
    for _ in range(5):
        assert model.loss(batch)["video"].item() == pytest.approx(sum([0, 1, 2, 3, 4, 5, 6, 7]) / 8)
    assert len(set(seen)) > 1


def test_the_loss_is_the_weighted_sum_of_its_terms(make_responder, make_batch):
    model, batch = make_responder(objective=Objective(video=0.5, audio=3.0, end=7.0)).eval(), make_batch()
    losses = model.loss(batch)
    assert losses["end"] > 0
    total = 0.5 * losses["video"] + 3.0 * losses["audio"] + 7.0 * losses["end"]
    torch.testing.assert_close(losses["loss"].detach(), total)


def test_each_person_is_read_in_their_own_role(make_responder, make_batch):
    """The roles of heard and said tokens differ, in video and in audio, and from that of a voice."""
    model, batch = make_responder(noise=None).eval(), make_batch()
    tokens = {}
    for role in (INITIATOR, RESPONDER, VOICE):
        with torch.no_grad():
            keep, levels = torch.ones(2, 1, dtype=torch.bool), torch.zeros(batch.mask.shape)
            steps = [model.steps(batch, levels, torch.zeros(2), keep).tokens[0]]
            voice = [model.conditions(batch, model.embed, model.conditions.keep_all(keep[:, 0])).tokens[0, 11:]]
            model.embed.role.weight[role] += 1.0
            steps.append(model.steps(batch, levels, torch.zeros(2), keep).tokens[0])
            voice.append(model.conditions(batch, model.embed, model.conditions.keep_all(keep[:, 0])).tokens[0, 11:])
        tokens[role] = (steps[1] - steps[0]).mean(-1).round().bool(), (voice[1] - voice[0]).mean(-1).round().bool()
    heard = torch.tensor([0] * 8 + [1] * 5 * 3 + [0] * 8 * 6).bool()  # step 0, then heard 1 .. 3, then the answer
    assert torch.equal(tokens[INITIATOR][0], heard)
    assert torch.equal(tokens[RESPONDER][0], ~heard)
    assert not tokens[VOICE][0].any()
    assert tokens[VOICE][1].all()


def test_audio_is_generated_from_the_backbone_s_audio_outputs(make_responder, make_batch):
    """In training and in generation the depth transformer is given the last F outputs of a chunk."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    inputs = []
    model.depth.condition.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        hidden = model.run_backbone(batch)
        model.loss(batch)
        state = model.start(batch, 4)
        model.generate_chunk(state, ChunkSampling(sets=1, flow_steps=2))
    torch.testing.assert_close(inputs[0], hidden[:, :-1, 4:].flatten(0, 1))
    assert torch.equal(inputs[1], state.hidden[:, 4:])


def test_training_on_some_chunks_draws_real_chunks_at_random(make_responder, make_batch):
    """Every chosen chunk is no padding, and keeps its own history, codes and target."""
    model = make_responder(noise=None, objective=Objective(spatial_chunks=4)).eval()
    batch = make_batch(turns=single(5, less=2))
    batch.latents[1, 4:] = 77.0  # the second answer has 3 chunks
    full = make_responder(noise=None).eval()
    torch.manual_seed(0)
    record = watch(full)
    full.loss(batch)
    (prefix, local, _), _, tokens = record.inputs[0]
    watched, chosen = watch(model), set()
    for _ in range(20):
        model.loss(batch)
        context, _, targets = watched.inputs.pop()
        rows = [int((tokens == target).flatten(1).all(1).nonzero()) for target in targets]
        assert len(set(rows)) == 4
        torch.testing.assert_close(context.prefix, prefix[rows])
        torch.testing.assert_close(context.local, local[rows])
        chosen |= set(rows)
    assert chosen == {0, 1, 2, 3, 4, 5, 6, 7}


def test_codes_of_the_history_are_hidden_in_training_alone(make_responder, make_batch):
    changes = {"conditions": conditioning(), "objective": Objective(code_dropout=1.0)}
    model, batch = make_responder(**changes), make_batch()
    embed, hidden = model.embed.embed_codes, []
    model.embed.embed_codes = lambda codes, roles, which=None: hidden.append(which) or embed(codes, roles, which)
    for _ in range(20):
        model.train().run_backbone(batch)
    assert 0.2 < torch.stack(hidden)[:, ~batch.stills].float().mean() < 0.8
    assert all(drawn[batch.stills].all() for drawn in hidden)
    assert len({tuple(drawn.flatten().tolist()) for drawn in hidden}) > 15, "drawn anew each time"
    model.eval().run_backbone(batch)
    assert torch.equal(hidden[-1], batch.stills), "stills have no codes"


def test_orders_are_random_permutations():
    generator = torch.Generator().manual_seed(0)
    order = draw_order(4000, 10, torch.device("cpu"), generator)
    assert torch.equal(order.sort(-1).values, torch.arange(10).expand(4000, -1))
    for position in range(10):
        share = order[:, position].bincount(minlength=10) / 4000
        assert share.sub(0.1).abs().max() < 0.02, "every token is equally likely at every position"
    assert torch.equal(order, draw_order(4000, 10, torch.device("cpu"), generator.manual_seed(0)))
    assert not torch.equal(order, draw_order(4000, 10, torch.device("cpu"), generator))


def test_the_masking_ratio_is_a_truncated_normal():
    shares = [draw_masked_count(100_000) / 100_000 for _ in range(2000)]
    assert kstest(shares, truncnorm(-1.2, 0, loc=1.0, scale=0.25).cdf).pvalue > 0.01


def test_the_schedule_is_the_cosine():
    """After i of N steps S cos(pi i / 2N) tokens are masked; figures of NOVA's own settings."""
    assert set_sizes(100, 4) == [8, 21, 33, 38]
    sizes = set_sizes(256, 64)
    assert (len(sizes), min(sizes), max(sizes)) == (61, 1, 7)
    sizes = set_sizes(1440, 64)
    assert (len(sizes), sizes[0], max(sizes)) == (63, 2, 36)
