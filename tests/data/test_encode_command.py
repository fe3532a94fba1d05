from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import make_folder
from typer.testing import CliRunner, Result

from vidchat.cli import app
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("data"), ["train", "val"])
    StackedVAE(4, 8, [8], [1], [1]).save(folder / "video_vae")
    codec = StftCodec(codebooks=2, vocabulary=8, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(folder / "audio_codec")
    return folder


def encode(root: Path, *more: str) -> Result:
    words = [str(root), f"video_vae={root}/video_vae", f"audio_codec={root}/audio_codec", "data.size=16x16"]
    return CliRunner().invoke(app, ["data", "encode", *words, *more])


def test_a_folder_becomes_a_folder_of_tokens_that_can_be_verified(root: Path, tmp_path: Path) -> None:
    dry = encode(root, "--output", str(tmp_path), "--dry-run")
    assert "4 segments of 2 dialogues, 4 to encode" in dry.output
    assert not list(tmp_path.iterdir())
    done = encode(root, "--output", str(tmp_path), "data.max_chunks=5", "data.dtype=float16")
    assert done.exit_code == 0, done.output
    assert done.output.count("4 samples in 1 shards") == 2
    (made,) = tmp_path.glob("tokens/latents-*/made_with.json")
    provenance = json.loads(made.read_text())
    assert (provenance["size"], provenance["longest"], provenance["dtype"]) == ([16, 16], 5, "float16")
    assert provenance["tokenizer"]["class"] == "StackedVAE"
    assert (tmp_path / "dialogues.jsonl").read_text() == (root / "dialogues.jsonl").read_text()
    verify = ["data", "verify", str(tmp_path)]
    assert "2 folders of shards, 0 problems" in CliRunner().invoke(app, verify).output
    shard = next(tmp_path.glob("tokens/codes-*/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    broken = CliRunner().invoke(app, verify)
    assert broken.exit_code == 1
    assert f"{shard.name}: is not what its index says" in broken.output


def test_mistakes_are_reported_in_a_sentence(root: Path) -> None:
    for word, message in (
        ("engine=slurm", "engine must be one of processes, ray"),
        ("shard_mb=0", "shard_mb must be at least 1"),
        ("worker=2", "there is no key 'worker'; did you mean 'workers'?"),
        ("data.max_chunk=2", "there is no key 'data.max_chunk'; did you mean 'data.max_chunks'?"),
        ("data.size=16", "data.size must be HEIGHTxWIDTH"),
        ("data.size=16x", "data.size='16x' is not a size"),
        ("data.dtype=float7", "data.dtype must be float32, float16 or bfloat16"),
        ("thinker=null", "must be given the name of one of its configs"),
        ("data.fps=30", "choose a pair whose rates divide"),
    ):
        done = encode(root, word)
        assert done.exit_code == 1
        assert message in done.output.replace("\n", " ")
    missing = CliRunner().invoke(app, ["data", "encode", "nowhere"])
    assert "there is no such data folder" in missing.output
