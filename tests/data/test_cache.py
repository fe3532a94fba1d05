from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from folders import SIZE, Codec, Vae, film

from vidchat.data.cache import CacheError, TokenCache
from vidchat.data.tokens import ClipEncoder, Piece
from vidchat.dialogue import Clip


@pytest.fixture
def pieces(tmp_path: Path) -> list[Piece]:
    for k in range(4):
        film(tmp_path / f"{k}.mp4", 17 + 4 * (k % 2))
    return [Piece(Clip(tmp_path / f"{k}.mp4", "ann"), "first", 25) for k in range(4)]


def cache(folder: Path, vae: Vae | None = None, sound: bool = True) -> TokenCache:
    return TokenCache(folder / "tokens", ClipEncoder(vae or Vae(), Codec() if sound else None, 25, SIZE))


def test_what_is_read_is_what_the_tokenizers_gave(tmp_path: Path, pieces: list[Piece]) -> None:
    tokens = cache(tmp_path)
    assert tokens.fill(pieces).read == 4
    for piece in pieces:
        (span,) = tokens.encoder.read(piece)
        (expected,) = tokens.encoder.encode([span])
        found = tokens.load(piece.name)
        assert torch.equal(found.latents, expected.latents)
        assert expected.codes is not None
        assert found.codes is not None
        assert torch.equal(found.codes, expected.codes)
        assert found.codes.dtype == torch.int64


def test_clips_of_one_length_are_encoded_together_and_only_once(tmp_path: Path, pieces: list[Piece]) -> None:
    vae = Vae()
    cache(tmp_path, vae).fill(pieces)
    assert vae.calls == 2  # two lengths
    cache(tmp_path, vae).fill(pieces)
    assert vae.calls == 2
    film(tmp_path / "2.mp4", 9)  # a changed clip is encoded again
    os.utime(tmp_path / "2.mp4", ns=(1, 1))
    cache(tmp_path, vae).fill(pieces)
    assert vae.calls == 3
    assert len(cache(tmp_path).load(pieces[2].name).latents) == 3


def test_a_stage_without_sound_and_one_with_it_share_latents(tmp_path: Path, pieces: list[Piece]) -> None:
    silent = cache(tmp_path, sound=False)
    silent.fill(pieces)
    assert silent.load(pieces[0].name).codes is None
    full = cache(tmp_path)
    assert full.video == silent.video
    assert not full.has(pieces[0].name)
    full.fill(pieces)
    assert full.load(pieces[0].name).codes is not None


def test_encoding_that_was_stopped_goes_on(
    tmp_path: Path, pieces: list[Piece], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidchat.data.cache.WINDOW", 1)  # a clip at a time

    class Stops(Vae):
        def encode(self, pictures: torch.Tensor) -> torch.Tensor:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().encode(pictures)

    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, Stops()).fill(pieces)
    assert [cache(tmp_path).has(piece.name) for piece in pieces] == [True, True, False, False]
    vae = Vae()
    assert cache(tmp_path, vae).fill(pieces).read == 4
    assert vae.calls == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_a_bad_clip_is_named_and_tried_again_only_when_it_changes(tmp_path: Path, pieces: list[Piece]) -> None:
    (tmp_path / "1.mp4").write_bytes(b"not a film")
    report = cache(tmp_path).fill(pieces)
    assert report.read == 3
    assert [where for where, _ in report.skipped] == ["1.mp4"]
    assert "cannot be decoded" in str(cache(tmp_path).fill(pieces))
    film(tmp_path / "1.mp4", 17)
    assert cache(tmp_path).fill(pieces).read == 4


def test_other_tokenizers_have_other_files(tmp_path: Path, pieces: list[Piece]) -> None:
    class Other(Vae):
        def fingerprint(self) -> str:
            return "other"

    cache(tmp_path).fill(pieces)
    other = cache(tmp_path, Other())
    assert not other.has(pieces[0].name)
    larger = TokenCache(tmp_path / "tokens", ClipEncoder(Vae(), None, 25, (32, 32)))
    assert larger.video not in (other.video, cache(tmp_path).video)


def test_files_made_with_something_else_are_refused(tmp_path: Path, pieces: list[Piece]) -> None:
    tokens = cache(tmp_path)
    (tokens.video / "made_with.json").write_text('{"fps": 30}')
    with pytest.raises(CacheError, match=r"was made with .*30.*delete it"):
        cache(tmp_path)
