from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from vidchat.build import build_responder
from vidchat.registry import to_names
from vidchat.release import Release, export_release, load_release
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer

SHAPE = {
    "_target_": "vidchat.model.transformer.Shape",
    "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 32,
}  # fmt: skip
MODEL = {
    "_target_": "vidchat.model.responder.Responder",
    "ratio": 2,
    "backbone": SHAPE,
    "spatial": SHAPE,
    "depth": SHAPE,
    "flow": {"_target_": "vidchat.model.flow.FlowShape", "width": 16, "blocks": 1},
}
CONDITION = {
    "text": "answer", "initiator": True, "voice": True, "scores": ["dover"], "features": 0,
    "drop": 0.1,
}  # fmt: skip


@pytest.fixture(scope="session")
def release_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of a small untrained responder with small untrained tokenizers: 16x16 frames, 2x2 latents."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("release")
    video = StackedVAE(channels=4, patch=4, widths=[8, 8], encoder_blocks=[1, 1], decoder_blocks=[1, 1])
    audio = StftCodec(code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2, vocabulary=16)
    for parameter in (*video.parameters(), *audio.parameters()):
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    video.save(folder / "video")
    audio.save(folder / "audio")
    config = OmegaConf.create(
        {
            "stage": {"name": "test", "steps": 0},
            "data": {"fps": 25, "size": [16, 16]},
            "model": MODEL,
            "condition": CONDITION,
            "video_vae": {"_target_": "vidchat.tokenizers.stacked.StackedVAE.load", "directory": str(folder / "video")},
            "audio_codec": {
                "_target_": "vidchat.tokenizers.stft_codec.StftCodec.load", "directory": str(folder / "audio"),
            },
            "text_tokenizer": {"_target_": "vidchat.tokenizers.text.ByteTokenizer"},
        }
    )  # fmt: skip
    video, audio = StackedVAE.load(folder / "video"), StftCodec.load(folder / "audio")
    responder = build_responder(to_names(config.model), config.condition, 25, video, audio, ByteTokenizer())
    for parameter in responder.parameters():  # a zero-initialised head would give the same output for any input
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return export_release(folder / "release", responder, config, video, audio, ByteTokenizer())


@pytest.fixture
def release(release_folder: Path) -> Release:
    return load_release(release_folder)
