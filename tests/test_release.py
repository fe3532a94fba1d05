"""A release is loaded as it was saved, by itself, and says in a sentence why when it cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from vidchat.batch import ChunkBatch
from vidchat.generation.stream import GenerationSettings, stream_answer
from vidchat.release import Release, ReleaseError, build_responder, export_release, load_release
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer

SHAPE = {
    "_target_": "vidchat.model.transformer.Shape",
    "width": 16,
    "layers": 2,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 8,
    "mlp_width": 16,
}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """A run's config, with tokenizers saved where it says."""
    torch.manual_seed(0)
    StackedVAE(4, 8, [8], [1], [1]).save(tmp_path / "vae")
    codec = StftCodec(codebooks=2, vocabulary=8, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(tmp_path / "codec", torch.float16)
    return {
        "model": {
            "_target_": "vidchat.model.responder.Responder",
            "backbone": SHAPE,
            "spatial": SHAPE,
            "depth": SHAPE,
            "flow": {"_target_": "vidchat.model.flow.FlowShape", "width": 16, "blocks": 1},
        },
        "condition": {
            "text": "answer",
            "initiator": False,
            "earlier_turns": False,
            "voice": False,
            "scores": [],
            "features": 0,
            "drop": 0.1,
        },
        "data": {"root": "/home/somebody/clips", "fps": 25, "size": [32, 32]},
        "stage": {"name": "pretrain_av", "steps": 3},
        "video_vae": {"_target_": "vidchat.tokenizers.stacked.StackedVAE.load", "directory": str(tmp_path / "vae")},
        "audio_codec": {
            "_target_": "vidchat.tokenizers.stft_codec.StftCodec.load",
            "directory": str(tmp_path / "codec"),
        },
        "text_tokenizer": {"_target_": "vidchat.tokenizers.text.ByteTokenizer"},
    }


@pytest.fixture
def made(config: dict[str, Any], tmp_path: Path) -> tuple[Path, Release]:
    """A release folder, and what went into it; the run's own tokenizers are gone."""
    tools = {
        "video_vae": StackedVAE.load(tmp_path / "vae"),
        "audio_codec": StftCodec.load(tmp_path / "codec"),
        "text_tokenizer": ByteTokenizer(),
    }
    responder = build_responder(config["model"], config["condition"], 25, **tools).eval()
    with torch.no_grad():
        for parameter in responder.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = export_release(tmp_path / "release", responder, config, **tools)
    shutil.rmtree(tmp_path / "vae")
    shutil.rmtree(tmp_path / "codec")
    return folder, Release(responder, **tools, config={**config, "fps": 25, "size": [32, 32]})


def test_loads_what_was_exported_without_the_run_that_made_it(made: tuple[Path, Release], tmp_path: Path) -> None:
    folder, original = made
    moved = folder.rename(tmp_path / "elsewhere")
    loaded = load_release(moved)
    assert not loaded.responder.training
    assert loaded.size == (32, 32)
    assert loaded.clock == original.clock
    assert loaded.clock.frames_per_chunk == 8
    batch = ChunkBatch(
        latents=torch.randn(1, 1, 4, 4, 4),
        chunk_mask=torch.zeros(1, 0, dtype=torch.bool),
        text_ids=torch.tensor([loaded.text_tokenizer.encode("tea")]),
        text_mask=torch.ones(1, 3, dtype=torch.bool),
    )
    one, other = (
        list(stream_answer(r.responder, r.video_vae, r.audio_codec, batch, GenerationSettings(chunks=2)))
        for r in (original, loaded)
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.pictures, b.pictures)
        assert a.waveform is not None
        assert b.waveform is not None
        assert torch.equal(a.waveform, b.waveform)


def test_tells_nothing_of_the_machine_it_was_made_on(made: tuple[Path, Release], tmp_path: Path) -> None:
    told = (made[0] / "config.yaml").read_text()
    assert "somebody" not in told
    assert str(tmp_path) not in told


def test_half_precision_is_half_the_size_and_loads_as_single(made: tuple[Path, Release], tmp_path: Path) -> None:
    folder, original = made
    config = {**OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), "data": original.config["data"]}  # type: ignore[dict-item]
    for name in ("video_vae", "audio_codec"):
        config[name] = {**config[name], "directory": str(folder / name)}
    tools = (original.video_vae, original.audio_codec, original.text_tokenizer)
    half = export_release(tmp_path / "half", original.responder, config, *tools, dtype=torch.float16)
    sizes = [(where / "model.safetensors").stat().st_size for where in (folder, half)]
    assert sizes[1] < 0.7 * sizes[0]
    loaded = load_release(half)
    assert {p.dtype for p in loaded.responder.parameters()} == {torch.float32}
    assert torch.allclose(
        loaded.responder.embed.codes(torch.zeros(1, 8, 2, dtype=torch.long)),
        original.responder.embed.codes(torch.zeros(1, 8, 2, dtype=torch.long)),
        atol=1e-2,
    )


def _another_tokenizer(folder: Path) -> None:
    path = folder / "video_vae" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


def _edit(folder: Path, key: str, value: Any) -> None:
    config = OmegaConf.load(folder / "config.yaml")
    OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, "does not exist; give a release folder or a Hub id"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda f: (f / "config.yaml").unlink(), "not a release"),
        (lambda f: shutil.rmtree(f / "audio_codec"), "lacks the folder audio_codec"),
        (_another_tokenizer, "the video_vae found is"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "is damaged"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "cannot be read"),
        (lambda f: _edit(f, "kind", "tokenizer"), "not the config of a responder's release"),
        (lambda f: _edit(f, "model.flow.width", 8), "does not fit config.yaml"),
        (lambda f: _edit(f, "model.flow.widht", 8), "cannot be built"),
        (lambda f: _edit(f, "text_tokenizer._target_", "os.system"), "would build os.system"),
        (
            lambda f: _edit(f, "text_tokenizer._target_", "vidchat.tokenizers.weights.save_tokenizer"),
            "would build vidchat.tokenizers.weights.save_tokenizer",
        ),
        (
            lambda f: _edit(f, "text_tokenizer._target_", "vidchat.tokenizers.weights.os.system"),
            "would build vidchat.tokenizers.weights.os.system",
        ),
    ],
)
def test_says_in_a_sentence_what_is_wrong(made: tuple[Path, Release], spoil: Any, told: str) -> None:
    spoil(made[0])
    with pytest.raises(ReleaseError) as caught:
        load_release(made[0])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizers_folder_and_a_checkpoint_are_named_as_what_they_are(made: tuple[Path, Release]) -> None:
    with pytest.raises(ReleaseError, match="is a tokenizer's folder, not a release"):
        load_release(made[0] / "video_vae")
    checkpoint = made[0] / "step_00000001.ckpt"
    checkpoint.touch()
    with pytest.raises(ReleaseError, match="is a training checkpoint, not a release"):
        load_release(checkpoint)
