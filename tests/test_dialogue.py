from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidchat.dialogue import ChunkClock, Clip, ClockError, Dialogue, Turn


@pytest.mark.parametrize(
    ("sample_rate", "hop", "codec_frames"), [(16000, 320, 8), (24000, 320, 12), (24000, 1920, 2), (16000, 640, 4)]
)
def test_a_chunk_holds_whole_codec_frames(sample_rate, hop, codec_frames):
    clock = ChunkClock(25, 4, sample_rate, hop)
    assert clock.codec_frames_per_chunk == codec_frames
    assert clock.samples_per_chunk == sample_rate * 4 // 25


@pytest.mark.parametrize(("fps", "stride", "hop"), [(24, 4, 1920), (30, 4, 1920), (25, 3, 1920)])
def test_tokenizers_whose_rates_do_not_divide_are_refused_by_name(fps, stride, hop):
    with pytest.raises(ClockError, match=r"chunks/s .* 12.5 codec frames/s") as error:
        ChunkClock(fps, stride, 24000, hop)
    assert f"{fps} fps / stride {stride}" in str(error.value)


@given(st.integers(0, 500))
def test_numbers_of_frames_and_chunks_are_inverse(chunks):
    clock = ChunkClock(25, 4, 16000, 320)
    assert clock.chunks(clock.frames(chunks)) == chunks
    assert clock.chunks(clock.frames(chunks) + 3) == chunks, "incomplete chunks do not count"
    assert clock.samples(chunks) * 25 == (clock.frames(chunks) - 1) * 16000, "audio is as long as frames 1..4T"


def test_a_dialogue_has_an_answer():
    question = Turn("initiator", Clip(Path("a.mp4"), "ann"))
    reply = Turn("responder", Clip(Path("b.mp4"), "bob"))
    dialogue = Dialogue("d", (reply, question, Turn("responder", Clip(Path("c.mp4"), "bob"))))
    assert dialogue.answer.path.name == "c.mp4"
    assert dialogue.question is question.clip
    assert Dialogue("d", (reply,)).question is None
    with pytest.raises(ValueError, match="nothing to answer"):
        Dialogue("d", (question,))


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (2.0, 2.0), (2.0, 1.0)])
def test_a_clip_ends_after_it_starts(start, end):
    with pytest.raises(ValueError, match="must end after it starts"):
        Clip(Path("a.mp4"), "ann", start=start, end=end)
