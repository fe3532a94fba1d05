"""Compatible pairs of tokenizers: the table of docs/reference/tokenizers.md equals what the clock computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from transformers import DacConfig, DacModel

from vidchat.dialogue import ChunkClock, ClockError

ROOT = Path(__file__).parents[2]
CODECS = {"demo": (16000, 320), "encodec_24khz": (24000, 320), "mimi": (24000, 1920)}


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "reference" / "tokenizers.md").read_text().split("| fps | temporal stride |")[1]
    lines = text.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} fps, stride {row[1]}")
def test_the_table_equals_what_the_clock_computes(row: list[str]) -> None:
    fps, stride = int(row[0]), int(row[1])
    assert float(row[2]) == pytest.approx(1000 * stride / fps, abs=1e-3)
    for cell, (rate, hop) in zip(row[3:], CODECS.values(), strict=True):
        if cell == "-":
            with pytest.raises(ClockError, match="choose a pair whose rates divide"):
                ChunkClock(fps, stride, rate, hop)
        else:
            assert ChunkClock(fps, stride, rate, hop).codec_frames_per_chunk == int(cell)


@pytest.mark.parametrize("group", ["video_vae", "audio_codec", "thinker"])
def test_every_config_names_an_importable_tokenizer(group: str) -> None:
    for path in sorted((ROOT / "configs" / group).glob("*.yaml")):
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            config = compose("train", ["stage=pretrain_av", f"{group}={path.stem}"])
        node = config[group]
        assert node is None or callable(get_object(node._target_)), path


@torch.no_grad()
def test_dac_looks_ahead() -> None:
    """DAC is not supported, because the audio of a codec frame depends on later codec frames."""
    config = DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], upsampling_ratios=[4, 2], decoder_hidden_size=32,
        n_codebooks=2, codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    model = DacModel(config).eval()
    latents = torch.randn(1, model.config.hidden_size, 20)
    changed = latents.clone()
    changed[..., 12:] += 1
    hop = model.config.hop_length
    difference = (model.decoder(latents) - model.decoder(changed)).abs().flatten()
    assert difference[: 11 * hop].max() > 1e-6
