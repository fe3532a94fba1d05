from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidchat.dialogue import ChunkClock, Clip, ClockError, Dialogue, TimedText, Turn


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


WORDS = (TimedText("how", 0.0, 0.4), TimedText("are", 0.4, 1.0), TimedText("you", 1.0, 2.0))


@pytest.mark.parametrize(
    ("span", "text"),
    [((0, 3), "How are you?"), ((0, 1.4), "how are"), ((0.5, 3), "are you"), ((2, 2.4), ""), ((0.7, 1.5), "are")],
)
def test_the_transcript_of_a_span_holds_each_word_whose_middle_it_holds(span, text):
    clip = Clip(Path("a.mp4"), "ann", "How are you?", start=7, end=10, words=WORDS)
    assert clip.text_between(*span) == text


def test_a_segment_is_cut_between_its_words():
    segments = (TimedText("how are you", 0.0, 3.0), TimedText("today", 3.0, 4.0))
    clip = Clip(Path("a.mp4"), "ann", "How are you today?", end=10, words=segments)
    assert [clip.text_between(*span) for span in ((0, 2), (2, 5), (1, 2.4))] == ["how are", "you today", "are"]


def test_without_times_only_the_whole_clip_has_a_transcript():
    clip = Clip(Path("a.mp4"), "ann", "How are you?", start=7, end=10)
    assert clip.text_between(0, 2.6) == "How are you?"
    assert clip.text_between(0, 2.4) is None
    assert clip.text_between(0.6, 3) is None
    to_the_end = Clip(Path("a.mp4"), "ann", "How are you?", start=7)
    assert to_the_end.text_between(0, 3, length=3) == "How are you?"
    assert to_the_end.text_between(0, 3) is None, "the length is unknown"
    assert to_the_end.text_between(0, 2, length=3) is None
    assert Clip(Path("a.mp4"), "ann", "", end=3).text_between(1, 2) == "", "who says nothing says nothing in a span"


@pytest.mark.parametrize("start", [-1.0, float("nan")])
def test_a_turn_starts_on_the_clock(start):
    with pytest.raises(ValueError, match="start at 0 s or later"):
        Turn("responder", Clip(Path("a.mp4"), "ann"), start)
