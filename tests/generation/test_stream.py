from __future__ import annotations

import itertools

import pytest
import torch

from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.generation.stream import Conversation, GenerationSettings, stream_answer
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.precision import to_bf16
from vidchat.release import Release


@pytest.fixture(params=["fp32", "bf16"])
def release(release, request) -> Release:
    """A release in both precisions."""
    if request.param == "bf16":
        to_bf16(release.responder)
    return release


SAMPLING = ChunkSampling(sets=2, flow_steps=2, noise_level=0.1)


def make_batch(size: int = 2) -> ChunkBatch:
    turns = torch.ones(size, 3, dtype=torch.bool)
    return ChunkBatch(
        latents=torch.randn(size, 1, 4, 2, 2),
        chunk_mask=torch.ones(size, 0, dtype=torch.bool),
        turn_latents=torch.randn(size, 3, 4, 2, 2),
        turn_codes=torch.randint(16, (size, 3, 8, 2)),
        turn_roles=torch.zeros(size, 3, dtype=torch.long),
        turn_mask=turns,
        conditions={
            "text": ConditionValues(torch.randint(256, (size, 5)), torch.ones(size, 5, dtype=torch.bool)),
            "voice": ConditionValues(torch.randint(16, (size, 2, 8, 2)), turns[:, :2]),
            "scores": ConditionValues(torch.randn(size, 1), turns[:, :1]),
        },
    )


def run(release: Release, batch: ChunkBatch, **settings: object) -> list:
    generation = GenerationSettings(**{"chunks": 4, "sampling": SAMPLING, **settings})
    return list(stream_answer(release.responder, release.video_vae, release.audio_codec, batch, generation))


def test_streamed_chunks_equal_decoding_the_whole_answer(release):
    """The chunks equal the decoding of all latents and all codes at once."""
    batch = make_batch()
    chunks = run(release, batch)
    latents = torch.stack([batch.latents[:, 0], *(chunk.latents for chunk in chunks)], dim=2)
    codes = torch.cat([chunk.codes for chunk in chunks], dim=1)
    with torch.no_grad():
        frames = release.video_vae.decode(latents)
        waveform = release.audio_codec.decode(codes)
    streamed = torch.cat([chunk.frames for chunk in chunks], dim=2)
    torch.testing.assert_close(streamed, frames[:, :, 1:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([c.waveform for c in chunks], 1), waveform, atol=1e-5, rtol=1e-5)
    assert streamed.shape[2] == 16
    assert waveform.shape[1] == 4 * 2560


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_seed_determines_the_answer(release, guidance):
    sampling = ChunkSampling(sets=2, flow_steps=2, noise_level=0.1, guidance=guidance)
    batch = make_batch()
    first, again = (run(release, batch, seed=3, sampling=sampling) for _ in range(2))
    other = run(release, batch, seed=4, sampling=sampling)
    assert all(
        torch.equal(a.latents, b.latents) and torch.equal(a.codes, b.codes) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].latents, other[0].latents)


def test_an_answer_may_be_stopped_anywhere(release):
    """The first chunks do not depend on the number of chunks."""
    batch = make_batch()
    whole = run(release, batch, chunks=4)
    settings = GenerationSettings(chunks=100, sampling=SAMPLING)
    stream = stream_answer(release.responder, release.video_vae, release.audio_codec, batch, settings)
    for a, b in zip(whole, itertools.islice(stream, 4), strict=True):
        assert torch.equal(a.frames, b.frames)
        assert torch.equal(a.waveform, b.waveform)


def test_generation_with_a_cache_equals_the_model_without_one(release):
    """Greedy codes are the most likely ones in an uncached pass over the generated chunks."""
    from vidchat.model.depth import CodeSampling

    batch = make_batch()
    sampling = ChunkSampling(sets=2, flow_steps=2, noise_level=0.0, codes=CodeSampling(temperature=0))
    chunks = run(release, batch, chunks=3, sampling=sampling)
    batch.latents = torch.stack([batch.latents[:, 0], *(chunk.latents for chunk in chunks)], dim=1)
    batch.codes = torch.stack([chunk.codes for chunk in chunks], dim=1)
    batch.chunk_mask = torch.ones(2, 3, dtype=torch.bool)
    with torch.no_grad():
        hidden = release.responder.run_backbone(batch)
        for t in range(3):
            logits = release.responder.depth(hidden[:, t, -8:], batch.codes[:, t])
            assert torch.equal(logits.argmax(-1), batch.codes[:, t])


def test_the_caller_s_gradient_mode_is_unchanged(release):
    settings = GenerationSettings(chunks=2, sampling=SAMPLING)
    for chunk in stream_answer(release.responder, release.video_vae, release.audio_codec, make_batch(), settings):
        assert torch.is_grad_enabled()
        assert not chunk.frames.requires_grad


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_conversation_of_two_turns(release, guidance):
    """The second answer depends on what was heard, and not on the pieces in which the clip arrived."""
    batch = make_batch()
    sampling = ChunkSampling(sets=2, flow_steps=2, guidance=guidance)
    settings = GenerationSettings(chunks=3, sampling=sampling)

    def second(latents, codes, pieces):
        conversation = Conversation(release.responder, release.video_vae, release.audio_codec, batch, settings)
        first = list(conversation.answer())
        for piece in pieces:
            conversation.hear(latents[:, piece], codes[:, piece])
        return first, list(conversation.answer(2))

    latents, codes = torch.randn(2, 4, 4, 2, 2), torch.randint(16, (2, 4, 8, 2))
    first, whole = second(latents, codes, [slice(0, 4)])
    _, pieces = second(latents, codes, [slice(0, 1), slice(1, 4)])
    _, other = second(-latents, codes, [slice(0, 4)])
    alone = run(release, batch, chunks=3, sampling=sampling)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(first, alone, strict=True))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(whole, pieces, strict=True))
    assert not torch.equal(whole[0].latents, other[0].latents)
    assert whole[0].frames.shape[2] == 4, "the second answer starts with frame 1 too"


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_conversation_is_a_sequence_of_model_calls(release, guidance):
    """Answer, hear, answer, written out: every said chunk is appended once, with noise, before what follows it."""
    batch, model = make_batch(), release.responder
    sampling = ChunkSampling(sets=2, flow_steps=2, guidance=guidance, noise_level=0.2)
    settings = GenerationSettings(chunks=3, window=2, seed=5, sampling=sampling)
    latents, codes = torch.randn(2, 2, 4, 2, 2), torch.randint(16, (2, 2, 8, 2))
    conversation = Conversation(model, release.video_vae, release.audio_codec, batch, settings)
    answers = list(conversation.answer())
    conversation.hear(latents, codes)
    answers += conversation.answer(2)
    expected, generator = [], torch.Generator().manual_seed(5)
    with torch.no_grad():
        state = model.prefill(batch, 2, guidance)
        for turn, chunks in enumerate((3, 2)):
            for t in range(chunks):
                if t:
                    state = model.append_chunk(state, *expected[-1], 0.2, generator)
                expected.append(model.generate_chunk(state, sampling, generator))
            if turn == 0:
                state = model.append_chunk(state, *expected[-1], 0.2, generator)
                for t in range(2):
                    state = model.append_heard_chunk(state, latents[:, t], codes[:, t])
                state = model.restart(state, batch.latents[:, 0])
        # Another answer without a heard clip appends the last chunk too.
        again = next(iter(conversation.answer(1)))
        state = model.append_chunk(state, *expected[-1], 0.2, generator)
        expected.append(model.generate_chunk(model.restart(state, batch.latents[:, 0]), sampling, generator))
    for chunk, (expected_latents, expected_codes) in zip([*answers, again], expected, strict=True):
        assert torch.equal(chunk.latents, expected_latents)
        assert torch.equal(chunk.codes, expected_codes)


class _RecordingTokenizer:
    """A tokenizer whose streams record what is pushed to them."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.pushed = tokenizer, []

    def stream(self):
        stream, pushed = self.tokenizer.stream(), []
        self.pushed.append(pushed)
        push = stream.push
        stream.push = lambda tokens: pushed.append(tokens) or push(tokens)
        return stream


def test_every_answer_starts_new_decoder_streams(release):
    """The second answer starts from the reference, without the decoder state of the first."""
    batch, video, audio = make_batch(), _RecordingTokenizer(release.video_vae), _RecordingTokenizer(release.audio_codec)
    settings = GenerationSettings(2, sampling=SAMPLING)
    conversation = Conversation(release.responder, video, audio, batch, settings)
    for turn in range(2):
        chunks = list(conversation.answer())
        assert len(video.pushed) == len(audio.pushed) == turn + 1
        reference, *latents = video.pushed[turn]
        assert torch.equal(reference, batch.latents.transpose(1, 2))
        assert all(torch.equal(a[:, :, 0], b.latents) for a, b in zip(latents, chunks, strict=True))
        assert all(torch.equal(a, b.codes) for a, b in zip(audio.pushed[turn], chunks, strict=True))


def test_a_conversation_starts_with_an_answer(release):
    conversation = Conversation(
        release.responder, release.video_vae, None, make_batch(), GenerationSettings(chunks=1, sampling=SAMPLING)
    )
    with pytest.raises(ValueError, match="answer it first"):
        conversation.hear(torch.randn(2, 1, 4, 2, 2), None)
