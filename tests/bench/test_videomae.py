"""CD-FVD's loading code, against VideoMAE-v2 written out with the names of its published checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.bench.test_canonical import media
from vidchat.bench.canonical.videomae import VideoMae
from vidchat.bench.metric import BackendError
from vidchat.bench.suite import Backends

WIDTH, HEADS, DEPTH, HIDDEN = 176, 2, 2, 768  # ViT-g has 1408, 16, 40, 6144


def published():
    """A random checkpoint as VideoMAE-v2 publishes them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, 2, 14, 14), "patch_embed.proj.bias": (WIDTH,),
        "fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,), "head.weight": (174, WIDTH), "head.bias": (174,),
    }  # fmt: skip
    for block in range(DEPTH):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in {
                "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,),
                "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
                "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,), "mlp.fc1.weight": (HIDDEN, WIDTH),
                "mlp.fc1.bias": (HIDDEN,), "mlp.fc2.weight": (WIDTH, HIDDEN), "mlp.fc2.bias": (WIDTH,),
            }.items()
        }  # fmt: skip
    return {name: 0.15 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def forward_features(state, video):
    """(1, 3, 16, 224, 224) in [0, 1] to (1, WIDTH), as the papers have it."""
    x = F.conv3d(video, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=(2, 14, 14))
    x = x.flatten(2).transpose(1, 2)
    i = np.arange(WIDTH)
    angle = np.arange(x.shape[1])[:, None] / 10000 ** (2 * (i // 2) / WIDTH)
    x = x + torch.from_numpy(np.where(i % 2 == 0, np.sin(angle), np.cos(angle))).float()
    for block in range(DEPTH):
        w = {name.split(".", 2)[2]: v for name, v in state.items() if name.startswith(f"blocks.{block}.")}
        bias = torch.cat([w["attn.q_bias"], torch.zeros(WIDTH), w["attn.v_bias"]])
        normal = F.layer_norm(x, (WIDTH,), w["norm1.weight"], w["norm1.bias"], 1e-6)
        q, k, v = F.linear(normal, w["attn.qkv.weight"], bias).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(2, 3)) * (WIDTH / HEADS) ** -0.5).softmax(-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), w["attn.proj.weight"], w["attn.proj.bias"])
        normal = F.layer_norm(x, (WIDTH,), w["norm2.weight"], w["norm2.bias"], 1e-6)
        inner = F.gelu(F.linear(normal, w["mlp.fc1.weight"], w["mlp.fc1.bias"]))
        x = x + F.linear(inner, w["mlp.fc2.weight"], w["mlp.fc2.bias"])
    return F.layer_norm(x.mean(1), (WIDTH,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)


@pytest.mark.parametrize("inside", ["model", "module", None])
def test_published_names_give_the_published_features(tmp_path, inside):
    state = published()
    torch.save({inside: state, "epoch": 3} if inside else state, tmp_path / "vit_g.pth")
    clip = media(40, side=60)
    at = torch.linspace(0, 39, 16).round().long()
    video = F.interpolate(clip.frames[at].transpose(0, 1).float() / 255, (224, 224), mode="bilinear")[None]
    metric = VideoMae(tmp_path / "vit_g.pth")
    assert metric.read(clip)["rows"] == pytest.approx(forward_features(state, video).numpy(), rel=1e-4, abs=1e-5)


def test_it_is_an_extra_column_and_another_file_is_refused(tmp_path):
    state = published()
    torch.save({"module": state}, tmp_path / "vit_g.pth")
    columns = [column.name for metric in Backends(videomae=tmp_path / "vit_g.pth")() for column in metric.columns]
    assert columns[:4] == ["FID", "FVD", "CD-FVD", "PSNR"]
    assert "CD-FVD" not in [column.name for metric in Backends()() for column in metric.columns]
    broken = {name: value for name, value in state.items() if name != "blocks.1.mlp.fc2.bias"}
    narrow = {"patch_embed.proj.weight": torch.zeros(384, 3, 2, 14, 14)}  # ViT-small, whose heads are narrower
    for wrong, message in (
        (broken, "layer.1.output.dense.bias"),
        (narrow, "384"),
        ({"x": torch.zeros(1)}, "patch_embed"),
    ):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(BackendError, match=message):
            VideoMae(tmp_path / "wrong.pth")
    (tmp_path / "wrong.pth").write_bytes(b"no weights")
    with pytest.raises(BackendError, match="cannot be read"):
        VideoMae(tmp_path / "wrong.pth")
