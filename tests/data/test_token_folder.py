"""A folder of tokens whose clips are not there: it can be counted and, with the tokenizers that made it, shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders import film, make_folder, write_manifest
from typer.testing import CliRunner, Result

from vidchat.cli import app
from vidchat.data.folder import read_folder
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.data.tokens.provenance import CacheError
from vidchat.data.tokens.token_folder import TokenFolder
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    torch.manual_seed(0)
    StackedVAE(4, 8, [8], [1], [1]).save(folder / "video_vae")
    codec = StftCodec(codebooks=2, vocabulary=8, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(folder / "audio_codec")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three dialogues of clips of 21 to 42 frames, the last of the single branch."""
    folder = make_folder(tmp_path_factory.mktemp("data"), ["train", "val"])
    lines = [json.loads(line) for line in (folder / "dialogues.jsonl").read_text().splitlines()]
    film(folder / "long.mp4", 42)
    turn = {"role": "responder", "speaker": "s", "clip": "long.mp4", "text": "one two", "scores": {"dover": 0.5}}
    write_manifest(folder, [*lines, {"id": "alone", "branch": "single", "tier": "pretrain", "turns": [turn]}])
    return folder


@pytest.fixture(scope="module")
def tokens(root: Path, tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("tokens")
    words = [f"video_vae={tools / 'video_vae'}", f"audio_codec={tools / 'audio_codec'}", "data.size=16x16"]
    done = run("encode", root, "--output", output, *words, "data.max_chunks=5")
    assert done.exit_code == 0, done.output
    return output


def test_its_tokens_are_counted(tokens: Path) -> None:
    done = run("stats", tokens)
    assert done.exit_code == 0, done.output
    assert "the clips do not exist here" in done.output
    assert (tokens / "stats.png").stat().st_size > 1000
    kept = TokenFolder(tokens)
    dialogues, _ = read_folder(tokens, media=False)
    seconds = [kept.seconds(d, turn.clip) for d in dialogues for turn in d.turns]
    # Chunks of four frames at 25 fps: of a turn at most five and one more, of the single clip two spans of 21 frames.
    assert seconds == [pytest.approx(0.16 * chunks) for chunks in (5, 5, 6, 6, 10)]


def test_it_is_shown_by_the_tokenizers_that_made_it_alone(tokens: Path, tools: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    other = run("show", tokens, "--output", page)
    assert other.exit_code == 1
    assert "only it can decode them" in other.output.replace("\n", " ")
    assert "video_vae=" in other.output
    words = (f"video_vae={tools / 'video_vae'}", f"audio_codec={tools / 'audio_codec'}")
    done = run("show", tokens, "--output", page, *words)
    assert "3 dialogues" in done.output, done.output
    assert page.read_text().count("<video") == 5
    assert "decoded from tokens" in page.read_text()
    assert "1 dialogues" in run("show", tokens, "branch=single", "--output", tmp_path / "s.png", *words).output


def test_what_is_decoded_is_the_round_trip(root: Path, tokens: Path, tools: Path) -> None:
    video, audio = StackedVAE.load(tools / "video_vae"), StftCodec.load(tools / "audio_codec")
    kept, (first, *_) = TokenFolder(tokens), read_folder(tokens, media=False)[0]
    media = kept.media(first, first.answer, video, audio)
    assert media is not None
    encoder = ClipEncoder(video, audio, 25, (16, 16))
    (span,) = encoder.read(Segment(read_folder(root)[0][0].answer, "first", 5))
    (again,) = encoder.encode([span])
    decoded = video.decode(again.latents[None].transpose(1, 2))[0].transpose(0, 1)
    assert ((decoded.clamp(-1, 1) + 1) * 127.5 - media.frames).abs().max() <= 1
    assert again.codes is not None
    torch.testing.assert_close(media.waveform[640:], audio.decode(again.codes.flatten(0, 1)[None]).flatten())
    assert not media.waveform[:640].any(), "audio begins with frame 1"


def test_a_folder_without_tokens_says_so(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="holds no tokens"):
        TokenFolder(tmp_path)
    write_manifest(tmp_path, [{"id": "d", "turns": [{"role": "responder", "speaker": "s", "clip": "gone.mp4"}]}])
    done = run("stats", tmp_path)
    assert done.exit_code == 1
    assert "none of its dialogues has clips or tokens" in done.output.replace("\n", " ")
