"""Tokens of the conditions: positions in time, mask, and dropout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.model.conftest import conditioning
from vidchat.batch import ChunkBatch
from vidchat.model.condition_encoder import ConditionTokens

SECTIONS = {"text": 6, "scores": 2, "features": 3, "voice": 2 * 4, "turns": 3 * 8}


def encode(model, batch: ChunkBatch, keep: torch.Tensor | None = None) -> ConditionTokens:
    return model.conditions(batch, model.embed, model.latent, 2, keep)


def times(tokens: ConditionTokens) -> dict[str, torch.Tensor]:
    """The time axis of each section, (B, n)."""
    return dict(zip(SECTIONS, tokens.positions[..., 0].split(list(SECTIONS.values()), dim=1), strict=True))


def test_conditions_follow_each_other_in_time(make_responder, make_batch):
    """Words take one position each, chunks 4 steps each after the last word, and padding takes none."""
    tokens = encode(make_responder().eval(), make_batch())
    at = times(tokens)
    assert at["text"][0].tolist() == [0, 1, 2, 3, 4, 5]
    assert at["scores"][0].tolist() == [6, 7]
    assert at["features"][0].tolist() == [8, 9, 10]
    # Media start at 11. A chunk's time is its end, so the first chunk of voice, with F = 4, stands at 12, 13, 14, 15.
    assert at["voice"][0].tolist() == list(range(12, 20))
    turns = at["turns"][0].unflatten(0, (3, 8))
    assert turns[:, :4].unique(dim=1).flatten().tolist() == [23, 27, 31]
    assert turns[:, 4:].flatten().tolist() == list(range(20, 32))
    assert tokens.end[0] == 11 + 6 * 4, "chunk 0 of the answer comes one chunk after the five of voice and turns"
    # The second sample has 3 words, 1 score, 2 features, 1 chunk of voice and 2 of turns.
    assert at["text"][1, :3].tolist() == [0, 1, 2]
    assert at["scores"][1, 0] == 3
    assert at["features"][1, :2].tolist() == [4, 5]
    assert at["voice"][1, :4].tolist() == [7, 8, 9, 10]
    assert at["turns"][1, [0, 8]].tolist() == [14, 18]
    assert tokens.end[1] == 6 + 4 * 4
    words = tokens.positions[:, :11]
    assert torch.equal(words[..., 0], words[..., 1]), "words have one position on all axes"
    assert torch.equal(words[..., 0], words[..., 2])
    assert tokens.positions[0, 19:23, 1:].tolist() == [[11, 11], [11, 12], [12, 11], [12, 12]]


def test_words_are_causal_by_token_and_media_by_chunk(make_responder, make_batch):
    blocks = encode(make_responder().eval(), make_batch()).blocks
    steps = blocks.diff()
    assert (steps[:10] > 0).all(), "words one by one"
    voice, turns = blocks[11:19].view(2, 4), blocks[19:].view(3, 8)
    for chunks in (voice, turns):
        assert (chunks == chunks[:, :1]).all(), "a chunk sees all of itself"
        assert (chunks[:, 0].diff() > 0).all(), "and not the next"
    assert blocks[10] < voice[0, 0]
    assert voice[-1, 0] < turns[0, 0]


def test_the_condition_does_not_see_the_reference(make_responder, make_batch):
    """The keys and values of the conditions do not depend on the answer, chunk 0 included."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    stored = []
    for shift in (0.0, 1.0):
        batch.latents[:, 0] += shift
        with torch.no_grad():
            stored.append(model.prefill(batch, 4).cache._layers)
    for (before, _), (after, _) in zip(*stored, strict=True):
        assert torch.equal(before[:, :, : sum(SECTIONS.values())], after[:, :, : sum(SECTIONS.values())])
        assert not torch.equal(before, after)


def test_dropping_hides_conditions_and_keeps_positions(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    kept, dropped = encode(model, batch), encode(model, batch, torch.tensor([True, False]))
    assert torch.equal(dropped.visible[0], kept.visible[0])
    assert not dropped.visible[1].any()
    assert torch.equal(dropped.positions, kept.positions)
    assert torch.equal(dropped.end, kept.end)


def draw_kept(model, batch: ChunkBatch) -> torch.Tensor:
    """Draws which conditions of each sample are visible in one pass of training, (B, conditions) bool."""
    with torch.no_grad():
        seen = encode(model.train(), batch).visible
    names = model.conditions.used.keys() | ({"turns"} if model.conditions.hears else set())
    lengths = [length for name, length in SECTIONS.items() if name in names]
    sections = seen.split(lengths, dim=1)
    for section in sections:
        assert torch.equal(section.all(1), section.any(1)), "a condition is hidden as a whole"
    return torch.stack([section[:, 0] for section in sections], dim=1)


SWITCHES = {
    1: {"turns": True},
    2: {"turns": True, "features": 5},
    4: {"text": True, "turns": True, "voice": True, "scores": ["dover", "motion"]},
}


@pytest.mark.parametrize("conditions", SWITCHES)
def test_all_conditions_are_hidden_together_as_often_as_guidance_hides_them(make_responder, make_batch, conditions):
    """Guidance extrapolates from the model without conditions: it is trained as often with any number of them."""
    switches = conditioning(**SWITCHES[conditions], drop=0.1)
    kept = draw_kept(make_responder(conditions=switches), make_batch(padded=False).repeat(10_000))
    assert kept.shape == (20_000, conditions)
    own = 0.1 if conditions > 1 else 0.0
    nothing = (~kept.any(1)).float().mean()
    assert nothing == pytest.approx(0.1 + 0.9 * own**conditions, abs=0.01)
    assert kept.float().mean(0).sub(0.9 * (1 - own)).abs().max() < 0.01


def test_each_condition_of_each_sample_is_dropped_on_its_own(make_responder, make_batch):
    switches = conditioning(text=True, turns=True, voice=True, scores=["dover", "motion"], features=5, drop=0.3)
    model, batch = make_responder(conditions=switches), make_batch(padded=False).repeat(4000)
    kept = draw_kept(model, batch).float()
    with torch.no_grad():
        assert encode(model.eval(), batch).visible.all(), "never in evaluation"
    assert kept.mean(0).sub(0.49).abs().max() < 0.03
    both = kept.T @ kept / len(kept)
    assert both.fill_diagonal_(0.343).sub(0.343).abs().max() < 0.03, "independent, where not all are hidden together"
    assert kept[:-1].sub(0.49).mul(kept[1:] - 0.49).mean().abs() < 0.02, "and from sample to sample"


@pytest.mark.parametrize(("field", "index"), [("turn_latents", slice(0, 4)), ("turn_codes", slice(4, 8))])
def test_the_role_of_a_turn_is_added_to_video_and_audio(make_responder, make_batch, field, index):
    model, batch = make_responder().eval(), make_batch()
    other = replace(batch, turn_roles=1 - batch.turn_roles)
    first, second = (encode(model, each).tokens[:, -24:].unflatten(1, (3, 8))[:, :, index] for each in (batch, other))
    expected = model.embed.role.weight[1 - batch.turn_roles] - model.embed.role.weight[batch.turn_roles]
    torch.testing.assert_close(second - first, expected[:, :, None].expand_as(first), msg=field)


def test_the_same_codes_as_voice_and_as_turn_differ_by_their_role(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    batch.conditions["voice"].values = batch.turn_codes[:, :2].clone()
    batch.turn_roles = torch.zeros(2, 3, dtype=torch.long)
    tokens = encode(model, batch).tokens
    voice, turns = tokens[:, 11:19].unflatten(1, (2, 4)), tokens[:, 19:].unflatten(1, (3, 8))[:, :2, 4:]
    role = model.embed.role.weight
    torch.testing.assert_close(voice - turns, (role[2] - role[0]).expand_as(voice))


def test_equal_scores_have_different_tokens(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    batch.conditions["scores"].values = torch.ones(2, 2)
    scores = encode(model, batch).tokens[:, 6:8]
    assert not torch.allclose(scores[:, 0], scores[:, 1])
