"""CD-FVD: the distance of FVD over features of VideoMAE-v2, which are more sensitive to motion (Ge et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vidchat.bench.canonical.published_weights import read_weights, renamed
from vidchat.bench.metric import BackendError, Column, Features, Metric, even_indices, need_file
from vidchat.bench.protocol import file_hash, versions
from vidchat.data.media.read import Media

EXPECTED = "vit_g_hybrid_pt_1200e_ssv2_ft.pth"
SIDE, FRAMES, HEAD = 224, 16, 88  # training size and length of ViT-g, and the width of its attention heads
EPSILON = 1e-6  # of the layer norms
# Parameter names of the published checkpoint, as patterns, and of transformers' VideoMAEModel.
RENAMED = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)  # fmt: skip
JOINT_QKV = ".attn.qkv.weight"  # queries, keys and values in one matrix


class VideoMae(Metric):
    """Fréchet distance over features of `vit_g_hybrid_pt_1200e_ssv2_ft.pth`, preprocessed as by the package cd-fvd.

    The features are the mean of the last tokens, normalised: 1408 values for one window per clip. The model has a
    billion parameters, which take 4 GB of memory in every process; use a GPU.

    Args:
        path: Checkpoint.
        device: Device of the network.
    """

    dimension = "video quality"
    columns = (Column("CD-FVD", "lower", "frechet", digits=2),)
    proxy = False

    def __init__(self, path: Path | str, device: str = "cpu") -> None:
        self.path = need_file(path, f"VideoMAE-v2's {EXPECTED}")
        self.device = device
        model, norm = load_videomae(self.path)
        self.model, self.norm = model.to(device).eval(), norm.to(device).eval()

    def spec(self) -> Mapping[str, object]:
        return {
            "backend": "VideoMAE-v2 ViT-g, normalised mean of tokens (cd-fvd)",
            "weights": file_hash(self.path),
            "frames": f"{FRAMES} evenly, one window a clip",
            "input": f"[0, 1], bilinear without antialias to {SIDE}x{SIDE}",
            "libraries": versions("transformers", "torch"),
        }

    @torch.no_grad()
    def read(self, media: Media, truth: Media | None = None) -> Features:
        chosen = media.frames[torch.from_numpy(even_indices(len(media.frames), FRAMES))]
        video = F.interpolate(chosen.float() / 255, (SIDE, SIDE), mode="bilinear", align_corners=False)
        tokens = self.model(video[None].to(self.device)).last_hidden_state
        return {"rows": self.norm(tokens.mean(1)).cpu().numpy()}


def load_videomae(path: Path) -> tuple[Any, nn.LayerNorm]:
    """Loads the encoder and the norm after it; width and depth are taken from the file.

    Raises:
        BackendError: The file holds no such model.
    """
    from transformers import VideoMAEModel

    state = read_weights(path, "model", "module")
    try:
        model = VideoMAEModel(_config(state))
        norm = nn.LayerNorm(len(state["fc_norm.weight"]), EPSILON)
        norm.load_state_dict({part: state.pop(f"fc_norm.{part}") for part in ("weight", "bias")})
        model.load_state_dict(_by_transformers_names(state))
    except KeyError as error:
        raise BackendError(f"{path}: holds no VideoMAE-v2 (it lacks {error}); give {EXPECTED}") from None
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"{path}: holds no VideoMAE-v2 ({str(error)[:200]}); give {EXPECTED}") from None
    return model, norm


def _config(state: Mapping[str, Tensor]) -> Any:
    from transformers import VideoMAEConfig

    width, _, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    if width % HEAD:
        raise ValueError(f"its width {width} is not a multiple of {HEAD}, the width of a head of ViT-g")
    return VideoMAEConfig(
        image_size=SIDE,
        num_frames=FRAMES,
        patch_size=patch,
        tubelet_size=tubelet,
        hidden_size=width,
        num_attention_heads=width // HEAD,
        num_hidden_layers=len([name for name in state if name.endswith(JOINT_QKV)]),
        intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
        layer_norm_eps=EPSILON,
        use_mean_pooling=True,  # so that the encoder has no norm at its end
    )


def _by_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the encoder's tensors; the action classifier is left out."""
    tensors = {}
    for name, value in state.items():
        if name.startswith("head."):
            continue
        if name.endswith(JOINT_QKV):
            prefix = renamed(name.removesuffix(JOINT_QKV), RENAMED) + ".attention.attention."
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                tensors[f"{prefix}{part}.weight"] = rows
        else:
            tensors[renamed(name, RENAMED)] = value
    return tensors
