"""Training a responder: its tokenizers, its release, its samples, and a language model's weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from transformers import Qwen3Config, Qwen3ForCausalLM

import vidchat.training.samples as samples_module
from tests import batches
from tests.generation.conftest import CONDITION, MODEL, SHAPE
from tests.modules import responder_module
from tests.tiny_thinker import tiny_tokenizer
from tests.training.fakes import NoisyModule
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.data.media.pixels import to_bytes
from vidchat.generation.conversation import GenerationSettings
from vidchat.model.generation_state import ChunkSampling
from vidchat.release import load_release
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer, HubTokenizer
from vidchat.training.checkpoint import CheckpointError
from vidchat.training.initialise import start_from_language_model
from vidchat.training.responder_module import ResponderModule
from vidchat.training.samples import Samples

PLAIN = CONDITION | {"initiator": False, "voice": False, "scores": []}


@pytest.fixture
def tools() -> tuple[StackedVAE, StftCodec]:
    video = StackedVAE(channels=4, patch=4, widths=[8, 8], encoder_blocks=[1, 1], decoder_blocks=[1, 1])
    return video, StftCodec(code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2, vocabulary=16)


@pytest.fixture
def module(tools: tuple[StackedVAE, StftCodec]) -> ResponderModule:
    return responder_module(OmegaConf.create(MODEL), PLAIN, 25, 0, *tools, ByteTokenizer(), optimizer={"warmup": 0})


def batch() -> ChunkBatch:
    text = ConditionValues(torch.randint(256, (2, 3)), torch.ones(2, 3, dtype=torch.bool))
    return batches.answers(torch.randn(2, 4, 4, 2, 2), torch.randint(16, (2, 3, 8, 2)), conditions={"text": text})


def move_away(module: ResponderModule) -> None:
    """Weights that are not the averaged ones."""
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)


def test_only_the_responder_is_trained_and_saved(module: ResponderModule) -> None:
    assert {name.split(".")[0] for name in module.state_dict()} == {"network"}
    frozen = [*module.video_vae.parameters(), *module.audio_codec.parameters()]
    before = [p.clone() for p in frozen]
    optimizer = module.configure_optimizers()["optimizer"]
    module.losses(batch())["loss"].backward()
    optimizer.step()
    assert all(p.grad is None for p in frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.responder.parameters()}


def test_a_release_has_the_averaged_weights(module: ResponderModule, tmp_path: Path) -> None:
    module.video_vae.save(tmp_path / "video")
    module.audio_codec.save(tmp_path / "audio")
    tokenizers = {
        "video_vae": {"_target_": "vidchat.tokenizers.stacked.StackedVAE.load", "directory": str(tmp_path / "video")},
        "audio_codec": {
            "_target_": "vidchat.tokenizers.stft_codec.StftCodec.load", "directory": str(tmp_path / "audio"),
        },
        "text_tokenizer": {"_target_": "vidchat.tokenizers.text.ByteTokenizer"},
    }  # fmt: skip
    move_away(module)
    own = [p.clone() for p in module.network.parameters()]
    data = {"fps": 25, "size": [16, 16]}
    module.export(
        tmp_path / "release",
        {"stage": {"name": "x", "steps": 0}, "data": data, "model": MODEL, "condition": PLAIN, **tokenizers},
    )
    released = load_release(tmp_path / "release").responder
    for name, parameter in released.named_parameters():
        assert torch.equal(parameter, module.ema.average[name]), name
    assert all(torch.equal(a, b) for a, b in zip(own, module.network.parameters(), strict=True))


def test_samples_are_of_the_averaged_weights_in_evaluation(
    module: ResponderModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move_away(module)
    conversation, seen = samples_module.Conversation, []

    def watched(responder, *rest):  # type: ignore[no-untyped-def]
        averaged = all(torch.equal(p, module.ema.average[name]) for name, p in responder.named_parameters())
        seen.append((averaged, any(m.training for m in responder.modules())))
        return conversation(responder, *rest)

    monkeypatch.setattr(samples_module, "Conversation", watched)
    loader = SimpleNamespace(val_dataloader=lambda: [batch()])
    trainer = SimpleNamespace(datamodule=loader, global_step=7, loggers=[], is_global_zero=True)
    settings = GenerationSettings(5, sampling=ChunkSampling(sets=2, flow_steps=2))
    own = module.network.backbone.norm.weight.clone()
    module.train()
    paths = Samples(tmp_path, 1, 1, 25, settings).sample(trainer, module)  # type: ignore[arg-type]
    assert [path.name for path in paths] == ["step_00000007_0.mp4"]
    assert seen == [(True, False)]
    assert all(m.training for m in module.responder.modules())
    assert torch.equal(module.network.backbone.norm.weight, own)


def test_the_truth_beside_a_sample_has_the_same_frames(module: ResponderModule) -> None:
    """Frames 1..4T and their audio: the stills are left out, as they are of an answer."""
    latents, codes = torch.randn(1, 4, 4, 2, 2), torch.randint(16, (1, 3, 8, 2))
    truth = batches.answers(latents, codes, None, latents[:, 1:], codes)
    frames, waveform = samples_module.round_trip(truth, module)
    with torch.no_grad():
        decoded = to_bytes(module.video_vae.decode(latents.transpose(1, 2)))[:, :, 1:]
        said = module.audio_codec.decode(codes.flatten(1, 2))
    assert torch.equal(frames, decoded[0].transpose(0, 1))
    assert torch.equal(waveform, said[0])


def save_language_model(folder: Path, rows: int) -> Qwen3ForCausalLM:
    """Writes a random Qwen3 of the shape of the module's backbone, without a tokenizer."""
    names = {
        "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads", "head_dim": "head_dim", "intermediate_size": "mlp_width",
    }  # fmt: skip
    sizes = {theirs: SHAPE[ours] for theirs, ours in names.items()}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=rows, rope_parameters=rope, **sizes))
    model.save_pretrained(folder)
    return model


def test_the_average_starts_from_the_language_model(module: ResponderModule, tmp_path: Path) -> None:
    theirs = save_language_model(tmp_path, rows=50)
    start_from_language_model(module, str(tmp_path), "bytes")
    for name, value in theirs.model.named_parameters():
        if name != "embed_tokens.weight":
            assert torch.equal(module.ema.average[f"backbone.{name}"], value), name
            assert torch.equal(module.responder.backbone.get_parameter(name), value), name
    with pytest.raises(CheckpointError, match="this one trains a tokenizer"):
        start_from_language_model(NoisyModule(), str(tmp_path), None)


def test_its_words_are_taken_only_if_the_text_tokenizer_is_its_own(
    tools: tuple[StackedVAE, StftCodec], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy in another folder is its own; bytes, or one with other preprocessing, are not, though their ids fit."""
    words = save_language_model(tmp_path, rows=304).model.embed_tokens.weight
    for folder in (tmp_path, tmp_path / "copy", tmp_path / "other"):
        tiny_tokenizer().save_pretrained(folder)
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))
    own, other = (HubTokenizer(str(tmp_path / name)) for name in ("copy", "other"))
    for tokenizer, taken in ((own, True), (other, False), (ByteTokenizer(), False)):
        caplog.clear()
        module = responder_module(OmegaConf.create(MODEL), PLAIN, 25, 0, *tools, tokenizer)
        start_from_language_model(module, str(tmp_path), tokenizer.fingerprint())
        ids = module.responder.conditions.embeddings["text"].ids.weight
        assert torch.equal(ids, words[: tokenizer.vocabulary]) == taken
        assert ("the text tokenizer is not its own" in caplog.text) != taken
