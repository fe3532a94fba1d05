"""A release is loaded as it was saved, by itself, and says in a sentence why when it cannot be."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.deaths import deaths
from tests.runtime.test_atomic import small_disk
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.build import build_responder
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.registry import to_names
from vidchat.release import (
    Release,
    ReleaseError,
    export_release,
    load_release,
    read_config,
    read_weights,
)
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.tokenizers.weights import TokenizerError

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
    responder = build_responder(to_names(config["model"]), config["condition"], 25, **tools).eval()
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
    assert loaded.clock.codec_frames_per_chunk == 8
    batch, words = ChunkBatch.start(torch.randn(1, 4, 4, 4)), torch.tensor([loaded.text_tokenizer.encode("tea")])
    batch.conditions["text"] = ConditionValues(words, torch.ones(1, 3, dtype=torch.bool))
    settings = GenerationSettings(chunks=2, ends=False)
    one, other = (
        list(Conversation(r.responder, r.video_vae, r.audio_codec, batch, settings).answer())
        for r in (original, loaded)
    )
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.frames, b.frames)
        assert a.waveform is not None
        assert b.waveform is not None
        assert torch.equal(a.waveform, b.waveform)


def test_tells_nothing_of_the_machine_it_was_made_on(made: tuple[Path, Release], tmp_path: Path) -> None:
    text = (made[0] / "config.yaml").read_text()
    assert "somebody" not in text
    assert str(tmp_path) not in text


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


def _name(folder: Path, name: Any) -> None:
    """Another name of a part, deep in the model."""
    _edit(folder, "text_tokenizer.type" if isinstance(name, list) else "model.flow.type", name)


def _format(folder: Path, stated: Any) -> None:
    _edit(folder, "format", stated)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "does not exist; give a release folder or a Hub name"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda f: (f / "config.yaml").unlink(), "not a release"),
        (lambda f: shutil.rmtree(f / "audio_codec"), "lacks the folder audio_codec"),
        (_another_tokenizer, "the video_vae has the fingerprint"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "is damaged"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "cannot be read"),
        (lambda f: _edit(f, "kind", "tokenizer"), "not the config of a responder's release"),
        (lambda f: _edit(f, "model.flow.width", 8), "does not fit config.yaml"),
        (lambda f: _edit(f, "model.flow.widht", 8), "cannot be built"),
        (lambda f: _edit(f, "text_tokenizer._target_", "os.system"), "a key of bytes is wrong"),
        *((partial(_name, name=name), "cannot be a name in") for name in ("os.system", "../x", "", "a/b/c", "A/b")),
        (partial(_name, name="posix"), "posix is not registered in vidchat"),
        (partial(_name, name="os/system"), "it needs the package os, whose code would run here"),
        (partial(_name, name=["bytes"]), "text_tokenizer cannot be"),
        (partial(_format, stated=1), "is of format 1, whose model lays a dialogue out in another way: vidchat 0.1.0"),
        (partial(_format, stated=4), "is of format '4'; this vidchat reads format 3: update it"),
    ],
)
def test_says_in_a_sentence_what_is_wrong(made: tuple[Path, Release], spoil: Any, message: str) -> None:
    spoil(made[0])
    with pytest.raises(ReleaseError) as caught:
        load_release(made[0])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tokenizers_folder_and_a_checkpoint_are_named_as_what_they_are(made: tuple[Path, Release]) -> None:
    with pytest.raises(ReleaseError, match="is a tokenizer's folder, not a release"):
        load_release(made[0] / "video_vae")
    checkpoint = made[0] / "step_00000001.ckpt"
    checkpoint.touch()
    with pytest.raises(ReleaseError, match="is a training checkpoint, not a release"):
        load_release(checkpoint)


def _spoil(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("part", ["", "video_vae", "audio_codec"])
def test_weights_that_are_not_finite_are_not_loaded(made: tuple[Path, Release], value: float, part: str) -> None:
    _spoil(made[0] / part, value)
    with pytest.raises(ReleaseError, match=r"is damaged: \S+ is not finite in 1 of \d+ values"):
        load_release(made[0])


def test_weights_that_are_not_finite_are_not_exported(
    made: tuple[Path, Release], config: dict[str, Any], tmp_path: Path
) -> None:
    folder, release = made
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tools = (release.video_vae, release.audio_codec, release.text_tokenizer)
    parameter = next(release.responder.parameters())
    for value, dtype in [(torch.nan, torch.float32), (1e5, torch.float16)]:  # the latter is infinite in half precision
        with torch.no_grad():
            parameter.fill_(value)
        with pytest.raises(ReleaseError, match=r"is not written: \S+ is not finite"):
            export_release(folder, release.responder, config, *tools, dtype=dtype)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    with torch.no_grad():
        next(release.video_vae.parameters()).fill_(torch.nan)
    with pytest.raises(TokenizerError, match=r"is not written: \S+ is not finite"):
        release.video_vae.save(folder / "video_vae")


def test_an_export_over_a_release_that_is_killed_or_finds_the_disk_full_leaves_one_that_loads(
    made: tuple[Path, Release], config: dict[str, Any]
) -> None:
    """Before each of its file operations; the new release has another model, so files of both would not fit."""
    folder, release = made
    tools = (release.video_vae, release.audio_codec, release.text_tokenizer)
    release.video_vae.save(config["video_vae"]["directory"])
    release.audio_codec.save(config["audio_codec"]["directory"])
    config["model"]["flow"]["width"] = 24
    other = build_responder(to_names(config["model"]), config["condition"], 25, *tools)
    with pytest.raises(OSError) as caught, small_disk(30_000):
        export_release(folder, other, config, *tools)
    assert caught.value.filename == str(folder)
    widths = [16]
    for _ in deaths(lambda: export_release(folder, other, config, *tools)):
        widths.append(read_config(folder)["model"]["flow"]["width"])
        kept = release.responder if widths[-1] == 16 else other
        kept.load_state_dict(read_weights(folder))
        assert release.video_vae.load(folder / "video_vae").fingerprint() == release.video_vae.fingerprint()
    assert widths == sorted(widths)
    assert load_release(folder).config["model"]["flow"]["width"] == 24
    assert [path.name for path in folder.parent.glob(".*")] == []
