from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.model.conftest import conditioning
from vidchat.model.backbone import LanguageModelError, language_model_folder, load_language_model, scale_inputs
from vidchat.model.transformer import Shape
from vidchat.model.video_head import HeadInputs

SHAPE = Shape(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, mlp_width=64, theta=1_000_000)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Qwen3ForCausalLM, Path]:
    """A tiny random Qwen3, saved in several shards as large models are."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1_000_000},
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("qwen3")
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model, folder


def test_a_saved_language_model_becomes_the_backbone(make_responder, language_model, caplog):
    """With more rows than ids, as in Qwen3-0.6B, text embedding and backbone compute its hidden states."""
    theirs, folder = language_model
    model = make_responder(backbone=SHAPE, vocabulary=43, conditions=conditioning(text=True)).eval()
    assert "text starts from its words" in load_language_model(model, folder, "lm", same_ids=True)
    assert not caplog.records
    ids = torch.randint(43, (2, 9))
    positions = torch.arange(9).float()[None, :, None].expand(2, -1, 3)
    with torch.no_grad():
        ours = model.backbone(model.conditions.embeddings["text"].ids(ids), positions, causal=True)
        torch.testing.assert_close(ours, theirs.model(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocabulary", [43, 50, 60])
def test_without_its_tokenizer_no_word_is_taken_and_a_warning_says_what_to_set(
    make_responder, language_model, vocabulary, caplog
):
    """Whether its vocabulary is smaller, of the same size or larger; its own embeddings get the size of the words."""
    model = make_responder(backbone=SHAPE, vocabulary=vocabulary)
    before = model.conditions.embeddings["text"].ids.weight.clone()
    assert "its words are not used" in load_language_model(model, language_model[1], "some/lm", same_ids=False)
    torch.testing.assert_close(model.conditions.embeddings["text"].ids.weight, before * rms_of(language_model))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "WORD EMBEDDINGS of backbone_from=some/lm ARE NOT USED, since the text tokenizer is not" in record.message
    assert "set text_tokenizer=qwen3 text_tokenizer.name=some/lm" in record.message


def test_a_language_model_without_words_is_a_warning_and_one_without_a_reader_of_text_is_not(
    make_responder, language_model, tmp_path, caplog
):
    theirs, folder = language_model
    shutil.copy(folder / "config.json", tmp_path)
    tensors = {name: value for name, value in theirs.state_dict().items() if "embed_tokens" not in name}
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "model.safetensors")
    load_language_model(make_responder(backbone=SHAPE, vocabulary=43), tmp_path, "lm", same_ids=True)
    assert "since it holds no embed_tokens.weight" in caplog.text
    caplog.clear()
    load_language_model(make_responder(backbone=SHAPE, conditions=conditioning(turns=True)), folder, "lm", False)
    assert not caplog.records


def test_fewer_words_than_ids_are_refused_before_anything_is_copied(make_responder, language_model):
    model = make_responder(backbone=SHAPE, vocabulary=60)
    before = model.backbone.norm.weight.clone()
    with pytest.raises(LanguageModelError, match="backbone_from=lm has 50 word embeddings for the 60 ids"):
        load_language_model(model, language_model[1], "lm", same_ids=True)
    assert torch.equal(model.backbone.norm.weight, before)


def test_media_enter_at_the_size_of_the_words(make_responder, language_model):
    torch.manual_seed(0)
    model = make_responder(backbone=SHAPE, vocabulary=50)
    load_language_model(model, language_model[1], "lm", same_ids=True)
    roles = torch.zeros(2, 9, dtype=torch.long)
    said = model.embed.embed_said(torch.randn(2, 9, 4, model.embed.visual.in_features))
    heard = model.embed.embed_heard(torch.randn(2, 9, 4, model.embed.heard.in_features))
    audio = model.embed.embed_codes(torch.randint(16, (2, 9, 4, 2)), roles)
    for tokens in (said, heard, audio):
        assert tokens.square().mean().sqrt().item() == pytest.approx(rms_of(language_model), rel=0.15)


def test_scaling_multiplies_every_input_of_the_backbone(make_responder, make_batch):
    """Conditions, heard and said chunks and noise levels alike: none keeps its old size beside the others."""
    model, inputs = make_responder().train(), []
    model.backbone.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].detach()))
    for factor in (1.0, 0.02):
        scale_inputs(model, factor)
        torch.manual_seed(0)
        model.loss(make_batch())
    torch.testing.assert_close(inputs[1], 0.02 * inputs[0])


def test_the_video_of_a_chunk_reads_its_codes_at_full_size_whatever_the_scale(make_responder):
    """Lips must not lose the audio because a language model's words are small."""
    model = make_responder()
    floats = torch.randn(2, 8, 16), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    inputs = HeadInputs(*floats, torch.randint(16, (2, 4, 2)))
    before = model.video_head._spatial_context(inputs, (2, 2)).prefix
    scale_inputs(model, 0.02)
    torch.testing.assert_close(model.video_head._spatial_context(inputs, (2, 2)).prefix, before, atol=1e-3, rtol=1e-3)


def rms_of(language_model: tuple[Qwen3ForCausalLM, Path]) -> float:
    """Returns the root mean square of its word embeddings."""
    return language_model[0].model.embed_tokens.weight.square().mean().sqrt().item()


def test_an_unsuitable_language_model_is_refused_with_the_keys_to_change(make_responder, language_model, tmp_path):
    _, folder = language_model
    with pytest.raises(LanguageModelError, match=r"model.backbone.layers=3 .*model.backbone.theta=1000000"):
        load_language_model(make_responder(), folder, "lm", False)
    model = make_responder(backbone=SHAPE)
    with pytest.raises(LanguageModelError, match=r"no config.json"):
        language_model_folder(str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LanguageModelError, match="no safetensors"):
        load_language_model(model, tmp_path, "lm", False)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(LanguageModelError, match="is a llama, not a qwen3"):
        load_language_model(model, tmp_path, "lm", False)
