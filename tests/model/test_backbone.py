from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.model.conftest import conditioning
from vidchat.model.backbone import LanguageModelError, load_language_model
from vidchat.model.transformer import Shape

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


def test_a_saved_language_model_becomes_the_backbone(make_responder, language_model):
    """The text embedding and the loaded backbone compute the hidden states of the language model."""
    theirs, folder = language_model
    model = make_responder(backbone=SHAPE, vocabulary=50, conditions=conditioning(text=True)).eval()
    assert "token embeddings too" in load_language_model(model, str(folder))
    ids = torch.randint(50, (2, 9))
    positions = torch.arange(9).float()[None, :, None].expand(2, -1, 3)
    with torch.no_grad():
        ours = model.backbone(model.conditions.embeddings["text"].ids(ids), positions, causal=True)
        torch.testing.assert_close(ours, theirs.model(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_another_vocabulary_keeps_its_own_embeddings(make_responder, language_model):
    model = make_responder(backbone=SHAPE)
    before = model.conditions.embeddings["text"].ids.weight.clone()
    assert "not used" in load_language_model(model, str(language_model[1]))
    assert torch.equal(model.conditions.embeddings["text"].ids.weight, before)


def test_an_unsuitable_language_model_is_refused_with_the_keys_to_change(make_responder, language_model, tmp_path):
    _, folder = language_model
    with pytest.raises(LanguageModelError, match=r"model.backbone.layers=3 .*model.backbone.theta=1000000"):
        load_language_model(make_responder(), str(folder))
    model = make_responder(backbone=SHAPE)
    with pytest.raises(LanguageModelError, match=r"no config.json"):
        load_language_model(model, str(tmp_path))
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LanguageModelError, match="no safetensors"):
        load_language_model(model, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(LanguageModelError, match="is a llama, not a qwen3"):
        load_language_model(model, str(tmp_path))
