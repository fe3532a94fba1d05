"""A conversation is a sequence of ticks on one clock, whoever calls them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.generation.conversation import Conversation, GeneratedChunk, GenerationSettings
from vidchat.model.depth import CodeSampling
from vidchat.model.generation_state import Chunk, ChunkSampling
from vidchat.model.precision import to_bf16
from vidchat.release import Release

SAMPLING = ChunkSampling(sets=2, flow_steps=2, noise_level=0.1)
Start = Callable[..., Conversation]


@pytest.fixture(params=["fp32", "bf16"])
def release(release: Release, request: pytest.FixtureRequest) -> Release:
    """A release in both precisions."""
    if request.param == "bf16":
        to_bf16(release.responder)
    return release


def make_batch(size: int = 2) -> ChunkBatch:
    known = torch.ones(size, 5, dtype=torch.bool)
    batch = ChunkBatch.start(torch.randn(size, 4, 2, 2))
    batch.conditions = {
        "text": ConditionValues(torch.randint(256, (size, 5)), known),
        "voice": ConditionValues(torch.randint(16, (size, 2, 8, 2)), known[:, :2]),
        "scores": ConditionValues(torch.randn(size, 1), known[:, :1]),
    }
    return batch


@pytest.fixture
def start(release: Release) -> Start:
    """Starts a conversation; two with the same seed and batch are equal."""
    batch = make_batch()

    def start(batch: ChunkBatch = batch, **settings: object) -> Conversation:
        generation = GenerationSettings(**{"chunks": 4, "ends": False, "sampling": SAMPLING} | settings)
        return Conversation(release.responder, release.video_vae, release.audio_codec, batch, generation)

    return start


def clip(chunks: int, size: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(size, chunks, 4, 2, 2), torch.randint(16, (size, chunks, 8, 2))


def heard(tokens: tuple[Tensor, Tensor]) -> list[Chunk]:
    return [Chunk(tokens[0][:, t], tokens[1][:, t]) for t in range(tokens[0].shape[1])]


def same(first: Iterator[GeneratedChunk | None], second: Iterator[GeneratedChunk | None]) -> bool:
    """Whether two sequences of steps are equal bit for bit."""
    return all(
        (a is None) == (b is None)
        and (a is None or all(torch.equal(getattr(a, name), getattr(b, name)) for name in vars(a)))
        for a, b in zip(first, second, strict=True)
    )


def test_streamed_chunks_equal_decoding_the_whole_answer(release: Release, start: Start) -> None:
    """Every turn starts new decoders from its own still."""
    conversation = start()
    reference, still = conversation._now.state.reference, torch.randn(2, 4, 2, 2)
    first = list(conversation.answer())
    conversation.tick(speaking=False)
    second = [conversation.tick(still=still), *(conversation.tick() for _ in range(2))]
    for beginning, chunks in ((reference, first), (still, second)):
        latents = torch.stack([beginning, *(chunk.latents for chunk in chunks)], dim=2)
        codes = torch.cat([chunk.codes for chunk in chunks], dim=1)
        with torch.no_grad():
            frames, waveform = release.video_vae.decode(latents), release.audio_codec.decode(codes)
        streamed = torch.cat([chunk.frames for chunk in chunks], dim=2)
        torch.testing.assert_close(streamed, frames[:, :, 1:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([c.waveform for c in chunks], 1), waveform, atol=1e-5, rtol=1e-5)
        assert streamed.shape[2] == 4 * len(chunks)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_seed_determines_the_answer(start: Start, guidance: float) -> None:
    sampling = ChunkSampling(sets=2, flow_steps=2, noise_level=0.1, guidance=guidance)
    first, again, other = (list(start(sampling=sampling, seed=seed).answer()) for seed in (3, 3, 4))
    assert same(first, again)
    assert not torch.equal(first[0].latents, other[0].latents)


@pytest.mark.parametrize(("guidance", "copies"), [(1.0, 1), (2.0, 2)])
def test_only_guidance_takes_a_second_half(release: Release, start: Start, monkeypatch, guidance, copies) -> None:
    backbone, rows = type(release.responder.backbone), []
    forward = backbone.forward
    monkeypatch.setattr(backbone, "forward", lambda *args, **more: rows.append(len(args[1])) or forward(*args, **more))
    conversation = start(sampling=ChunkSampling(sets=2, flow_steps=2, guidance=guidance))
    conversation.hear(*clip(2))
    list(conversation.answer(2))
    assert set(rows) == {2 * copies}


def test_generation_with_a_cache_equals_the_model_without_one(release: Release, start: Start) -> None:
    """Greedy codes are the most likely ones in an uncached pass over the whole dialogue."""
    batch, tokens = make_batch(), clip(2)
    sampling = ChunkSampling(sets=2, flow_steps=2, noise_level=0.0, codes=CodeSampling(temperature=0))
    conversation = start(batch, sampling=sampling)
    conversation.hear(*tokens)
    chunks = list(conversation.answer(3))
    stills = [batch.latents[:, 0]] * 2
    batch.latents = torch.stack([*stills, *(chunk.latents for chunk in chunks)], dim=1)
    batch.codes = torch.stack([chunks[0].codes] * 2 + [chunk.codes for chunk in chunks], dim=1)
    batch.steps = torch.tensor([[0, 2, 3, 4, 5]] * 2)
    batch.stills, batch.mask = batch.steps < 3, torch.ones(2, 5, dtype=torch.bool)
    batch.heard_latents, batch.heard_codes = tokens
    batch.heard_steps = torch.tensor([[1, 2]] * 2)
    batch.heard_video = batch.heard_audio = torch.ones(2, 2, dtype=torch.bool)
    with torch.no_grad():
        hidden = release.responder.run_backbone(batch)
        for t, chunk in enumerate(chunks):
            logits = release.responder.depth(hidden[:, t + 1, -8:], chunk.codes)
            chosen = logits.gather(-1, chunk.codes[..., None])[..., 0]
            assert (logits.amax(-1) - chosen).max() < 0.05, "bf16 rounds"


def test_the_caller_s_gradient_mode_is_unchanged(start: Start) -> None:
    for chunk in start().answer():
        assert torch.is_grad_enabled()
        assert not chunk.frames.requires_grad


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_pieces_and_ticks_make_the_same_conversation(start: Start, guidance: float) -> None:
    """Hear, answer, hear, answer: whole clips, pieces of them, and tick by tick, bit for bit."""
    sampling = ChunkSampling(sets=2, flow_steps=2, guidance=guidance, noise_level=0.2)
    first, second = clip(3), clip(4)

    def talk(pieces: list[slice]) -> list[GeneratedChunk | None]:
        conversation = start(sampling=sampling)
        conversation.hear(*first)
        chunks = list(conversation.answer(3))
        for piece in pieces:
            conversation.hear(second[0][:, piece], second[1][:, piece])
        return [*chunks, *conversation.answer(2)]

    def ticks() -> Iterator[GeneratedChunk | None]:
        conversation = start(sampling=sampling)
        conversation.tick(speaking=False)  # ends step 0
        for t, chunk in enumerate(heard(first)):
            yield conversation.tick(chunk, speaking=t == 2)
        yield from (conversation.tick() for _ in range(2))
        conversation.tick(speaking=False)  # the last chunk's step, after which the initiator speaks
        for t, chunk in enumerate(heard(second)):
            yield conversation.tick(chunk, speaking=t == 3)
        yield conversation.tick()
        assert conversation.step == 3 + 3 + 4 + 2

    whole, pieces = talk([slice(0, 4)]), talk([slice(0, 1), slice(1, 4)])
    assert same(whole, pieces)
    assert same(whole, [chunk for chunk in ticks() if chunk is not None])


@pytest.mark.parametrize("part", ["latents", "codes"])
def test_an_answer_depends_on_what_was_heard(start: Start, part: str) -> None:
    latents, codes = clip(3)
    other = (-latents, codes) if part == "latents" else (latents, 15 - codes)
    answers = []
    for tokens in ((latents, codes), other):
        conversation = start()
        conversation.hear(*tokens)
        answers.append(next(conversation.answer()))
    assert not torch.equal(answers[0].latents, answers[1].latents)


def test_while_it_listens_the_responder_knows_the_past_only(start: Start) -> None:
    """A change of heard 3 changes nothing before said 4."""
    latents, codes = clip(5)
    changed = latents.clone()
    changed[:, 2] *= -1
    runs = []
    for tokens in ((latents, codes), (changed, codes)):
        conversation = start()
        runs.append([conversation.tick(), *(conversation.tick(chunk) for chunk in heard(tokens))])
    equal = [torch.equal(a.latents, b.latents) for a, b in zip(*runs, strict=True)]
    assert equal == [True] * 3 + [False] * 3


def test_an_answer_that_its_caller_stops_is_remembered_as_far_as_it_went(start: Start) -> None:
    """The first chunks do not depend on the limit, and what follows is as if the limit had been reached."""
    tokens, ends = clip(2), []
    for stopped in (True, False):
        conversation = start(chunks=100)
        chunks = list(itertools.islice(conversation.answer(), 3) if stopped else conversation.answer(3))
        conversation.hear(*tokens)
        ends.append([*chunks, *conversation.answer(2)])
    assert same(*ends)


@pytest.mark.parametrize("ticks", [1, 3, 5])
def test_ticks_that_are_taken_back_never_happened(start: Start, ticks: int) -> None:
    """Other things happen, are taken back, and the conversation goes on as one in which they did not happen."""
    before, instead, after = clip(2), clip(6), clip(3)
    played = 2

    def talk(detour: Callable[[Conversation], None]) -> list[GeneratedChunk | None]:
        conversation = start(window=3, undo=8)
        conversation.hear(*before)
        chunks = list(conversation.answer(played))
        detour(conversation)
        conversation.tick(speaking=False)
        conversation.hear(*after)
        return [*chunks, *conversation.answer(3)]

    def detour(conversation: Conversation) -> None:
        for chunk in heard(instead)[:ticks]:
            conversation.tick(chunk)
        conversation.take_back(ticks)

    assert same(talk(detour), talk(lambda conversation: None))


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_played(start: Start) -> None:
    """Of five chunks two were played: the others are forgotten, and the responder hears at once."""
    question, interruption = clip(2), clip(3)

    def talk(chunks: int) -> list[GeneratedChunk | None]:
        conversation = start(undo=4)
        conversation.hear(*question)
        answer = list(conversation.answer(chunks))
        if chunks > 2:
            conversation.take_back(chunks - 2)
            assert not conversation.in_turn
        conversation.hear(*interruption)
        return [*answer[:2], *conversation.answer(2)]

    assert same(talk(5), talk(2))


def test_what_cannot_be_is_refused(start: Start) -> None:
    conversation = start(undo=2)
    with pytest.raises(ValueError, match="nothing is heard in step 0"):
        conversation.tick(heard(clip(1))[0])
    with pytest.raises(ValueError, match="give no still"):
        conversation.tick(still=torch.randn(2, 4, 2, 2))
    list(conversation.answer(4))
    for ticks in (0, 3):
        with pytest.raises(ValueError, match="cannot be taken back, only 1 to 2"):
            conversation.take_back(ticks)
    conversation.take_back(2)
    with pytest.raises(ValueError, match="has ended"):
        conversation.tick()


@pytest.mark.parametrize(("bias", "chunks"), [(20.0, 1), (-20.0, 4)])
def test_a_turn_ends_when_the_model_says_so(release: Release, start: Start, bias: float, chunks: int) -> None:
    release.responder.end.bias.data.fill_(bias)
    conversation = start(ends=True)
    for _ in range(2):
        assert len(list(conversation.answer())) == chunks
        conversation.hear(*clip(2))
    assert len(list(start(ends=False).answer())) == 4


def test_a_turn_ends_at_the_median_of_its_length(release: Release, start: Start) -> None:
    """With an end in every fifth chunk on average, half of the turns last three chunks or fewer."""
    release.responder.end.weight.data.zero_()
    release.responder.end.bias.data.fill_(torch.tensor(0.2).logit())
    assert len(list(start(ends=True, chunks=50).answer())) == 4, "0.8^3 > 0.5 > 0.8^4"


def test_time_never_runs_out(start: Start) -> None:
    """A cache of 4 steps serves 60 steps, as large at the end as at the start; benchmarks/hour.py runs an hour."""
    conversation = start(window=4, undo=2)
    conversation.tick()
    chunk, keys = heard(clip(1))[0], []
    for _ in range(60):
        said = conversation.tick(chunk)
        assert said.latents.isfinite().all()
        keys.append(conversation._now.state.cache.key_mask(0).shape[-1])
    assert keys[10:] == [keys[10]] * 50


def test_conversations_share_no_state(start: Start) -> None:
    """Two conversations that are ticked in turns are as each alone."""
    tokens = clip(3)
    alone = start()
    expected = [alone.tick(), *(alone.tick(chunk) for chunk in heard(tokens))]
    one, other = start(), start(seed=1)
    mixed = []
    for chunk in [None, *heard(tokens)]:
        mixed.append(one.tick(chunk))
        other.tick(chunk)
    assert same(expected, mixed)


def test_time_passes_in_which_nobody_has_a_chunk(start: Start) -> None:
    heard = torch.randn(2, 3, 4, 2, 2), torch.randint(16, (2, 3, 8, 2))
    paused = start(sampling=SAMPLING)
    paused.hear(*heard)
    paused.wait(2)
    chunks = list(paused.answer(2))
    ticked = start(sampling=SAMPLING)
    ticked.tick(speaking=False)
    for chunk in range(3):
        ticked.tick(Chunk(heard[0][:, chunk], heard[1][:, chunk]), speaking=False)
    ticked.tick(speaking=False)
    expected = [ticked.tick(), ticked.tick()]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(chunks, expected, strict=True))


def test_the_first_tick_can_be_taken_back(start: Start) -> None:
    conversation = start(undo=2)
    first = conversation.tick()
    conversation.take_back(1)
    assert conversation.step == 0
    with pytest.raises(ValueError, match="step 0"):
        conversation.tick(Chunk(torch.randn(2, 4, 2, 2), torch.randint(16, (2, 8, 2))))
    assert torch.equal(conversation.tick().latents, first.latents)
