"""What is heard is encoded as it arrives, and equals the encoding of the whole clip."""

from __future__ import annotations

import weakref
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from vidchat.data.media.read import Media, MediaError, read_clip
from vidchat.data.media.write import ClipWriter, write_clip
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.dialogue import Clip
from vidchat.generation import heard
from vidchat.generation.answer import Question, read_question
from vidchat.generation.heard import HeardStream, hear_clip
from vidchat.model.generation_state import Chunk
from vidchat.release import Release

SIZE = (16, 16)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 40 seconds of changing blocks and noise."""
    path, generator = tmp_path_factory.mktemp("long") / "a.mp4", torch.Generator().manual_seed(0)
    with ClipWriter(path, 25, 16000) as writer:
        for _ in range(40):
            blocks = torch.randint(256, (25, 3, 2, 2), generator=generator, dtype=torch.uint8)
            noise = 0.1 * torch.randn(16000, generator=generator)
            writer.write(blocks.repeat_interleave(8, 2).repeat_interleave(8, 3), noise)
    return path


def whole(release: Release, clip: Clip) -> tuple[Media, torch.Tensor, torch.Tensor]:
    """A clip, and the encoding of all of it at once."""
    encoder = ClipEncoder(release.video_vae, release.audio_codec, 25, SIZE)
    (media,) = encoder.read(Segment(clip, "first", 1000))
    tokens = encoder.encode([media])[0]
    return media, tokens.latents[1:], tokens.codes


def stream(release: Release) -> HeardStream:
    return HeardStream(release.video_vae, release.audio_codec, release.clock)


def joined(chunks: list[Chunk]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([chunk.latents for chunk in chunks]), torch.cat([chunk.codes for chunk in chunks])


def hear(release: Release, clip: Clip) -> list[heard.Heard]:
    return list(hear_clip(clip, stream(release), release.clock, SIZE, audio=True))


@pytest.mark.parametrize("span", [(0.0, 8.0), (0.0, None), (3.0, 7.2)])
def test_a_clip_is_heard_as_it_is_encoded_for_training(release, long_clip, span):
    clip = Clip(long_clip, "", start=span[0], end=span[1])
    media, latents, codes = whole(release, clip)
    steps = hear(release, clip)
    streamed = joined([step.chunk for step in steps])
    torch.testing.assert_close(streamed[0], latents)
    assert torch.equal(streamed[1], codes)
    assert torch.equal(torch.cat([step.frames for step in steps]), media.frames[1:])
    torch.testing.assert_close(torch.cat([step.waveform for step in steps]), media.waveform)


@pytest.mark.parametrize("pieces", [(1, 640), (3, 1000), (7, 7 * 640), (50, 100)])
def test_pieces_of_any_size_make_the_same_chunks(release, long_clip, pieces):
    """As a camera and a microphone give them: the audio may lag behind, or run ahead."""
    clip = Clip(long_clip, "", end=2.04)
    media = read_clip(clip, fps=25, size=SIZE, sample_rate=16000)
    _, latents, codes = whole(release, clip)
    live, chunks = stream(release), []
    frames, samples = media.frames.split(pieces[0]), media.waveform[: 640 + 12 * 2560].split(pieces[1])
    for k in range(max(len(frames), len(samples))):
        new = (frames[k] if k < len(frames) else frames[0][:0]), (samples[k] if k < len(samples) else samples[0][:0])
        chunks += live.push(*new)
    chunks += live.finish()
    streamed = joined(chunks)
    torch.testing.assert_close(streamed[0], latents)
    assert torch.equal(streamed[1], codes)


def test_a_chunk_comes_as_late_as_its_codec_looks_ahead(release, long_clip):
    media = read_clip(Clip(long_clip, "", end=2.04), fps=25, size=SIZE, sample_rate=16000)
    live = stream(release)
    assert live.delay == 0.06
    assert not live.push(media.frames[:5], media.waveform[: 5 * 640])
    late = round(live.delay * 16000)
    assert not live.push(media.frames[:0], media.waveform[5 * 640 : 5 * 640 + late - 1])
    assert len(live.push(media.frames[:0], media.waveform[5 * 640 + late - 1 : 5 * 640 + late])) == 1


def test_a_model_without_audio_hears_frames(release, long_clip):
    silent = HeardStream(release.video_vae, None, release.clock)
    steps = list(hear_clip(Clip(long_clip, "", end=2.04), silent, release.clock, SIZE, audio=False))
    assert len(steps) == 12
    assert all(step.chunk.codes is None and not step.waveform.any() for step in steps)


@pytest.mark.parametrize("seconds", [0.0, 2.0, 500.0])
def test_wrong_durations_in_headers_change_nothing(release, long_clip, monkeypatch, seconds):
    """The header of a recording may have no duration, that of a truncated file a wrong one."""
    clip = Clip(long_clip, "")
    right = joined([step.chunk for step in hear(release, clip)])
    monkeypatch.setattr(heard, "length_of", lambda path: seconds)
    chunks = joined([step.chunk for step in hear(release, clip)])
    assert len(right[0]) == 249
    assert all(torch.equal(a, b) for a, b in zip(chunks, right, strict=True))


def test_what_was_heard_is_let_go(release, long_clip):
    """Memory does not grow with time: neither frames nor latents nor codes are kept for longer than a chunk."""
    clip = Clip(long_clip, "", end=4.0)
    refs = [
        [weakref.ref(tensor) for tensor in (step.frames, *step.chunk[:2])]
        for step in hear_clip(clip, stream(release), release.clock, SIZE, audio=True)
    ]
    assert [sum(ref() is not None for ref in step) for step in refs] == [0] * len(refs)
    live = stream(release)
    media = read_clip(clip, fps=25, size=SIZE, sample_rate=16000)
    for frames, samples in zip(media.frames.split(4), media.waveform.split(2560), strict=True):
        live.push(frames, samples)
        assert len(live._latents) <= 1
        assert live._codes.shape[1] < 8


def test_a_clip_of_less_than_a_chunk_is_refused(release, tmp_path):
    write_clip(tmp_path / "short.mp4", torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(2560), 25, 16000)
    with pytest.raises(MediaError, match=r"short\.mp4: too short, with fewer than 5 frames at 25 fps"):
        hear(release, Clip(tmp_path / "short.mp4", ""))


def test_no_condition_grows_with_its_clip(release, long_clip, tmp_path):
    """A voice stays in the cache, so its first 30 s are read."""
    Image.new("RGB", SIZE).save(tmp_path / "b.png")
    question = Question(tmp_path / "b.png", text="hello", voice=long_clip)
    assert read_question(release, question).conditions["voice"].values.shape[1] == 187
    write_clip(tmp_path / "v.mp4", torch.zeros(50, 3, 16, 16, dtype=torch.uint8), torch.zeros(32000), 25, 16000)
    short = read_question(release, replace(question, voice=tmp_path / "v.mp4"))
    assert short.conditions["voice"].values.shape[1] == 12


def test_who_waits_after_a_clip_is_heard_as_the_last_frame_and_silence(release, long_clip):
    clip = Clip(long_clip, "", start=0.0, end=3.0)
    alone = hear(release, clip)
    waiting = list(islice(hear_clip(clip, stream(release), release.clock, SIZE, audio=True, waits=True), 30))
    assert [one.over for one in waiting] == [k >= len(alone) for k in range(30)]
    for a, b in zip(alone, waiting, strict=False):
        assert torch.equal(a.frames, b.frames)
        torch.testing.assert_close(a.chunk.latents, b.chunk.latents)
        assert torch.equal(a.chunk.codes, b.chunk.codes)
    assert (waiting[-1].frames == alone[-1].frames[-1]).all()
    assert not waiting[-1].waveform.any()
