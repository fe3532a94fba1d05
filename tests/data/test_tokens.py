from __future__ import annotations

from pathlib import Path

import pytest
import torch
from folders import SIZE, Codec, Vae, film

from vidchat.data.media.read import MediaError
from vidchat.data.tokens.encoder import ClipEncoder, Segment, Tokens
from vidchat.dialogue import ClockError


def encode(path: Path, segment: str, max_chunks: int, audio: bool = True) -> list[Tokens]:
    from vidchat.dialogue import Clip

    encoder = ClipEncoder(Vae(), Codec() if audio else None, 25, SIZE)
    spans = encoder.read(Segment(Clip(path, "ann"), segment, max_chunks))  # type: ignore[arg-type]
    return [encoder.encode([span])[0] for span in spans]


def levels(tokens: Tokens) -> list[int]:
    """Which frame each latent is of: the stand-in takes the first of its chunk and the reference."""
    grey = (tokens.latents.mean((1, 2, 3)) + 1) * 127.5
    return [round((float(level) - 20) / 4) for level in grey]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    film(tmp_path / "a.mp4", 47, loud_from=9)
    return tmp_path / "a.mp4"


def test_an_answer_is_the_clips_beginning_in_whole_chunks(clip: Path) -> None:
    (tokens,) = encode(clip, "first", 25)
    assert tokens.latents.shape == (12, 3, 8, 8)  # 47 frames hold 11 chunks and the reference
    assert levels(tokens) == list(range(0, 45, 4))
    assert tokens.codes is not None
    assert tokens.codes.shape == (11, 8, 2)
    assert tokens.codes.dtype == torch.int64
    (cropped,) = encode(clip, "first", 5)
    assert levels(cropped) == list(range(0, 21, 4))
    assert torch.equal(cropped.latents, tokens.latents[:6])


def test_audio_starts_with_frame_one(clip: Path) -> None:
    """The tone begins with frame 9, the first of chunk 3: its frames are chunk 3's, and none of chunk 2's are."""
    (tokens,) = encode(clip, "first", 25)
    assert tokens.codes is not None
    loud = tokens.codes[:, :, 0]
    assert loud[2:].min() > 40
    assert loud[:2].max() < 5
    assert torch.equal(tokens.codes[..., 1].flatten(), torch.arange(88))


def test_the_end_of_a_long_question_is_encoded(clip: Path) -> None:
    (tokens,) = encode(clip, "last", 5)
    assert levels(tokens) == list(range(26, 47, 4))
    (whole,) = encode(clip, "last", 25)
    assert levels(whole) == list(range(2, 47, 4))
    assert tokens.codes is not None
    assert whole.codes is not None
    assert torch.equal(tokens.codes[..., 0], whole.codes[-5:, :, 0])


def test_spans_follow_each_other_and_each_has_its_own_reference(clip: Path) -> None:
    spans = encode(clip, "spans", 4)
    assert [levels(span) for span in spans] == [[0, 4, 8, 12, 16], [17, 21, 25, 29, 33], [34, 38, 42, 46]]


def test_without_a_codec_a_clip_needs_no_sound(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 10, audio=False)
    (tokens,) = encode(tmp_path / "a.mp4", "first", 25, audio=False)
    assert tokens.codes is None
    assert len(tokens.latents) == 3
    with pytest.raises(MediaError, match="no audio track"):
        encode(tmp_path / "a.mp4", "first", 25)


def test_a_clip_of_less_than_a_chunk_is_too_short(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 4)
    with pytest.raises(MediaError, match=r"a\.mp4.*too short.*4 frames.*at least 5"):
        encode(tmp_path / "a.mp4", "first", 25)
    film(tmp_path / "a.mp4", 5)
    assert len(encode(tmp_path / "a.mp4", "first", 25)[0].latents) == 2


def test_tokenizers_whose_chunks_differ_are_refused() -> None:
    codec = Codec()
    codec.hop = 300  # type: ignore[misc]
    with pytest.raises(ClockError, match="rates divide"):
        ClipEncoder(Vae(), codec, 25, SIZE)
