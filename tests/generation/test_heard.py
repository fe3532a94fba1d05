"""A long initiator's clip takes no more memory than a short one: only its end is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from vidchat.data.media.read import read_clip
from vidchat.data.media.write import ClipWriter
from vidchat.data.tokens.encoder import ClipEncoder
from vidchat.dialogue import Clip
from vidchat.generation import heard
from vidchat.generation.answer import Question, read_question
from vidchat.generation.heard import encode_heard, read_heard


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of one minute of changing blocks and noise."""
    path, generator = tmp_path_factory.mktemp("long") / "a.mp4", torch.Generator().manual_seed(0)
    with ClipWriter(path, 25, 16000) as writer:
        for _ in range(60):
            blocks = torch.randint(256, (25, 3, 2, 2), generator=generator, dtype=torch.uint8)
            noise = 0.1 * torch.randn(16000, generator=generator)
            writer.write(blocks.repeat_interleave(8, 2).repeat_interleave(8, 3), noise)
    return path


@pytest.fixture
def encoder(release) -> ClipEncoder:
    return ClipEncoder(release.video_vae, release.audio_codec, 25, (16, 16))


def test_encoding_in_pieces_equals_encoding_at_once(encoder, long_clip, monkeypatch):
    media = read_heard(encoder, Clip(long_clip, "", end=8.0), "last")
    monkeypatch.setattr(heard, "CHUNKS_AT_ONCE", 7)
    pieces, whole = encode_heard(encoder, media, "cpu"), encoder.encode([media])[0]
    assert len(pieces.latents) == len(pieces.codes) == (8 * 25 - 1) // 4
    torch.testing.assert_close(pieces.latents, whole.latents[1:])
    assert torch.equal(pieces.codes, whole.codes)


def test_only_the_end_of_a_long_clip_is_read_with_a_warning(encoder, long_clip, monkeypatch, caplog):
    clips = []

    def recorded(clip: Clip, **settings):
        clips.append(clip)
        return read_clip(clip, **settings)

    monkeypatch.setattr("vidchat.data.tokens.encoder.read_clip", recorded)
    media = read_heard(encoder, Clip(long_clip, ""), "last")
    assert len(media.frames) == 4 * 187 + 1, "30 s hold 187 whole chunks"
    assert clips[0].start == 29.0
    assert len(clips) == 1
    span = Clip(long_clip, "", start=60 - len(media.frames) / 25)
    alone = read_clip(span, fps=25, size=(16, 16), sample_rate=16000)
    assert torch.equal(media.frames, alone.frames)
    torch.testing.assert_close(media.waveform, alone.waveform[-len(media.waveform) :], atol=1e-3, rtol=0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{long_clip} lasts 60 s, of which the model hears the last 30 s"
    ]


@pytest.mark.parametrize("seconds", [0.0, 20.0, 500.0])
def test_wrong_durations_in_headers_change_nothing(encoder, long_clip, monkeypatch, caplog, seconds):
    """The header of a recording may have no duration, that of a truncated file a wrong one."""
    right = read_heard(encoder, Clip(long_clip, ""), "last")
    monkeypatch.setattr(heard, "length_of", lambda path: seconds)
    media = read_heard(encoder, Clip(long_clip, ""), "last")
    assert torch.equal(media.frames, right.frames)
    torch.testing.assert_close(media.waveform, right.waveform, atol=1e-3, rtol=0)
    assert len(caplog.records) == 2


def test_the_beginning_of_a_voice_and_the_whole_of_a_short_clip_are_read(encoder, long_clip, caplog):
    voice = read_heard(encoder, Clip(long_clip, ""), "first")
    assert len(voice.frames) == 4 * 187 + 1
    assert torch.equal(voice.frames[:101], read_heard(encoder, Clip(long_clip, "", end=101 / 25), "first").frames)
    assert len(caplog.records) == 1
    assert len(read_heard(encoder, Clip(long_clip, "", start=1.0, end=31.0), "last").frames) == 4 * 187 + 1
    assert len(caplog.records) == 1


def test_the_number_of_tokens_does_not_grow_with_the_clip(release, long_clip, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "b.png")
    question = Question(tmp_path / "b.png", long_clip, text="hello", voice=long_clip)
    batch = read_question(release, question)
    assert batch.turn_latents.shape[1] == batch.turn_codes.shape[1] == batch.conditions["voice"].values.shape[1] == 187
    short = read_question(release, replace(question, initiator=Clip(long_clip, "", start=60 - 749 / 25)))
    torch.testing.assert_close(batch.turn_latents, short.turn_latents)
