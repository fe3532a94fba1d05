"""The loading code of UTMOS, on a small random model with the names of the published file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.bench.test_canonical import media
from vidchat.bench.canonical.utmos import Utmos
from vidchat.bench.metric import BackendError
from vidchat.bench.suite import Backends


@pytest.fixture
def published(tmp_path):
    """Returns a small random wav2vec 2.0, the head, and a file of both with the published names."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(5)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    wav2vec2 = Wav2Vec2Model(config).eval()
    for parameter in wav2vec2.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    back = {
        "feature_projection.layer_norm.": "layer_norm.", "feature_projection.projection.": "post_extract_proj.",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.": "encoder.pos_conv.0.", "masked_spec_embed": "mask_emb",
        ".attention.": ".self_attn.", ".feed_forward.intermediate_dense.": ".fc1.",
        ".feed_forward.output_dense.": ".fc2.", ".conv.weight": ".0.weight",
        "conv_layers.0.layer_norm.": "conv_layers.0.2.",
    }  # fmt: skip
    state = {}
    for name, value in wav2vec2.state_dict().items():
        for ours, theirs in back.items():
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[:2] == ["encoder", "layers"] and parts[3] == "layer_norm":
            name = ".".join([*parts[:3], "self_attn_layer_norm", parts[4]])
        state[f"wav2vec2.{name}"] = value
    head = nn.ModuleDict({
        "blstm": nn.LSTM(32 + 8 + 8, 12, batch_first=True, bidirectional=True),
        "projection": nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 1)),
    })  # fmt: skip
    state |= {**head.state_dict(), "domain_emb": torch.randn(1, 8), "judge_emb": torch.randn(1, 8)}
    torch.save(state, tmp_path / "utmos.pt")
    return tmp_path / "utmos.pt", config, wav2vec2, head, state


def test_published_names_give_the_published_score(published):
    path, config, wav2vec2, head, state = published
    clip = media(30)
    with torch.no_grad():
        states = wav2vec2(clip.waveform[None]).last_hidden_state[0]
        context = [state[name].expand(len(states), 8) for name in ("domain_emb", "judge_emb")]
        scores = head["projection"](head["blstm"](torch.cat([states, *context], dim=1))[0])
    metric = Utmos(path, config=config)
    values = metric.compare(metric.read(clip), {}, {}, None)
    assert values == {"UTMOS": pytest.approx(float(3 + 2 * scores.mean()), rel=1e-5)}
    for waveform in (torch.zeros(19200), clip.waveform[:300]):
        assert metric.compare(metric.read(replace(clip, waveform=waveform)), {}, {}, None) == {"UTMOS": 1.0}


def test_another_file_is_refused(published):
    path, config, *_, state = published
    del state["wav2vec2.encoder.layers.1.fc2.weight"]
    torch.save(state, path)
    with pytest.raises(BackendError, match="output_dense"):
        Utmos(path, config=config)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(BackendError, match="domain_emb"):
        Backends(utmos=path)()
