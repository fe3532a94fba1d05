"""Tokens of the conditions: positions in time, mask, and dropout."""

from __future__ import annotations

import pytest
import torch

from tests.model.conftest import conditioning
from vidchat.batch import ChunkBatch
from vidchat.model.condition_encoder import HEARD, ConditionTokens

SECTIONS = {"text": 6, "scores": 2, "features": 3, "voice": 2 * 4}


def encode(model, batch: ChunkBatch, keep: torch.Tensor | None = None) -> ConditionTokens:
    keep = torch.ones(batch.size, dtype=torch.bool) if keep is None else keep
    return model.conditions(batch, model.embed, model.conditions.keep_all(keep))


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
    assert tokens.end[0] == 11 + 3 * 4, "step 0 comes one chunk after the two of the voice"
    # The second sample has 3 words, 1 score, 2 features and 1 chunk of voice.
    assert at["text"][1, :3].tolist() == [0, 1, 2]
    assert at["scores"][1, 0] == 3
    assert at["features"][1, :2].tolist() == [4, 5]
    assert at["voice"][1, :4].tolist() == [7, 8, 9, 10]
    assert tokens.end[1] == 6 + 2 * 4
    words = tokens.positions[:, :11]
    assert torch.equal(words[..., 0], words[..., 1]), "words have one position on all axes"
    assert torch.equal(words[..., 0], words[..., 2])
    assert (tokens.positions[0, 11:, 1:] == 11).all(), "voices stand at the upper left corner"


def test_without_media_step_0_is_next_to_the_last_word(make_responder, make_batch):
    words = encode(make_responder(conditions=conditioning(text=True)), make_batch())
    assert words.end.tolist() == [6, 3]
    nothing = encode(make_responder(conditions=None), make_batch())
    assert nothing.tokens.shape == (2, 0, 16)
    assert nothing.end.tolist() == [0, 0]


def test_words_are_causal_by_token_and_media_by_chunk(make_responder, make_batch):
    blocks = encode(make_responder().eval(), make_batch()).blocks
    assert (blocks.diff()[:10] > 0).all(), "words one by one"
    voice = blocks[11:].view(2, 4)
    assert (voice == voice[:, :1]).all(), "a chunk sees all of itself"
    assert blocks[10] < voice[0, 0] < voice[1, 0], "and not the next"
    assert blocks.max() < len(blocks), "later blocks start at their number"


def test_the_condition_does_not_see_the_reference(make_responder, make_batch):
    """The keys and values of the conditions do not depend on step 0."""
    model, batch = make_responder().eval(), make_batch(padded=False)
    stored = []
    for shift in (0.0, 1.0):
        batch.latents[:, 0] += shift
        with torch.no_grad():
            stored.append(model.start(batch, 4).cache._layers)
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


@pytest.mark.parametrize("dropped", SECTIONS)
def test_a_dropped_condition_is_hidden_as_a_whole_and_alone(make_responder, make_batch, dropped):
    model, batch = make_responder(), make_batch()
    keeps = model.conditions.keep_all(torch.ones(2, dtype=torch.bool))
    keeps[dropped] = torch.tensor([[False], [True]])
    before, after = encode(model, batch).visible, model.conditions(batch, model.embed, keeps).visible
    lengths = list(SECTIONS.values())
    for name, kept, seen in zip(SECTIONS, before.split(lengths, 1), after.split(lengths, 1), strict=True):
        assert torch.equal(seen[1], kept[1])
        assert not seen[0].any() if name == dropped else torch.equal(seen[0], kept[0])


def draw_kept(model, size: int) -> torch.Tensor:
    """Draws what each of B samples keeps, (B, conditions and what is heard) bool."""
    keeps = model.conditions.draw_keeps(size, torch.device("cpu"))
    assert keeps.keys() == model.conditions.used.keys() | ({HEARD} if model.conditions.hears else set())
    return torch.cat(list(keeps.values()), dim=1)


SWITCHES = {
    1: {"turns": True},
    2: {"turns": True, "features": 5},
    4: {"text": True, "turns": True, "voice": True, "scores": ["dover", "motion"]},
}


@pytest.mark.parametrize("conditions", SWITCHES)
def test_everything_is_hidden_together_as_often_as_guidance_hides_it(make_responder, conditions):
    """Guidance extrapolates from the model without conditions: it is trained as often with any number of them."""
    torch.manual_seed(0)
    kept = draw_kept(make_responder(conditions=conditioning(**SWITCHES[conditions], drop=0.1)), 40_000)
    assert kept.shape == (40_000, conditions)
    own = 0.1 if conditions > 1 else 0.0
    nothing = (~kept.any(1)).float().mean()
    assert nothing == pytest.approx(0.1 + 0.9 * own**conditions, abs=0.006)
    assert kept.float().mean(0).sub(0.9 * (1 - own)).abs().max() < 0.006


def test_each_condition_of_each_sample_is_dropped_on_its_own(make_responder):
    switches = conditioning(text=True, turns=True, voice=True, scores=["dover", "motion"], features=5, drop=0.3)
    model = make_responder(conditions=switches)
    torch.manual_seed(0)
    kept = draw_kept(model, 20_000).float()
    assert kept.mean(0).sub(0.49).abs().max() < 0.015
    both = kept.T @ kept / len(kept)
    assert both.fill_diagonal_(0.343).sub(0.343).abs().max() < 0.015, "independent, where not all are hidden together"
    assert kept[:-1].sub(0.49).mul(kept[1:] - 0.49).mean().abs() < 0.01, "and from sample to sample"
    torch.manual_seed(0)
    assert torch.equal(draw_kept(model, 20_000), kept.bool()), "by the seed"


def test_a_pass_of_training_hides_what_was_drawn(make_responder, make_batch):
    """What is heard is dropped like a condition; in evaluation nothing is, and nothing is drawn."""
    model, batch = make_responder(noise=None), make_batch(padded=False)
    keeps = model.conditions.keep_all(torch.ones(2, dtype=torch.bool))
    model.conditions.draw_keeps = lambda size, device: keeps
    seen, mask = [], model._mask
    model._mask = lambda conditions, steps: seen.append((conditions.visible, steps.visible)) or mask(conditions, steps)
    with torch.no_grad():
        kept = model.run_backbone(batch)
        model.eval().conditions.draw_keeps = None
        assert torch.equal(model.run_backbone(batch), kept)
        model.train().conditions.draw_keeps = lambda size, device: keeps | {HEARD: torch.tensor([[True], [False]])}
        deaf = model.run_backbone(batch)
    assert torch.equal(deaf[0], kept[0])
    assert torch.equal(deaf[1, 0], kept[1, 0]), "step 0, before anything is heard"
    assert not torch.isclose(deaf[1, 1:], kept[1, 1:]).all(-1).any()
    assert all(conditions.all() for conditions, _ in seen)
    assert [steps.sum(1).tolist() for _, steps in seen] == [[71, 71], [71, 71], [71, 71 - 3 * 5]]


def test_equal_scores_have_different_tokens(make_responder, make_batch):
    model, batch = make_responder().eval(), make_batch()
    batch.conditions["scores"].values = torch.ones(2, 2)
    scores = encode(model, batch).tokens[:, 6:8]
    assert not torch.allclose(scores[:, 0], scores[:, 1])
