"""The model's own sampling settings are used by the samples of training, by a release and by `vidchat infer`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.generation.conftest import CONDITION, MODEL
from tests.modules import responder_module
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.cli.infer import _settings
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.model.depth import CodeSampling
from vidchat.model.generation_state import ChunkSampling
from vidchat.model.responder import Responder
from vidchat.registry import build
from vidchat.release import load_release, read_config
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.training.same_run import determining_differences

ROOT = Path(__file__).parents[2]
OWN = {
    "_target_": "vidchat.model.generation_state.ChunkSampling", "sets": 3, "flow_steps": 4,
    "temperature": 0.9, "guidance": 2.0,
    "noise_level": 0.2, "codes": {"_target_": "vidchat.model.depth.CodeSampling", "temperature": 0.7, "top_k": 5},
}  # fmt: skip
SAMPLING = ChunkSampling(3, 4, 0.9, 2.0, 0.2, CodeSampling(0.7, 5))
BEFORE = ChunkSampling(
    6, 8, 0.5, 1.0, 0.1, CodeSampling(0.6, 30, 1.0)
)  # what infer.yaml had when releases had no sampling settings
PLAIN = CONDITION | {"initiator": False, "voice": False, "scores": []}


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture
def used_sampling(monkeypatch: pytest.MonkeyPatch) -> list[ChunkSampling]:
    """Collects the sampling settings of every chunk that is generated."""
    settings: list[ChunkSampling] = []
    generate_chunk = Responder.generate_chunk

    def recorded(self: Responder, state: Any, sampling: ChunkSampling, *args: Any) -> Any:
        settings.append(sampling)
        return generate_chunk(self, state, sampling, *args)

    monkeypatch.setattr(Responder, "generate_chunk", recorded)
    return settings


def test_a_model_s_sampling_is_kept_from_training_to_infer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_sampling: list[ChunkSampling]
) -> None:
    video = StackedVAE(channels=4, patch=4, widths=[8, 8], encoder_blocks=[1, 1], decoder_blocks=[1, 1])
    audio = StftCodec(code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2, vocabulary=16)
    video.save(tmp_path / "video")
    audio.save(tmp_path / "audio")
    config = {
        "stage": {"name": "x", "steps": 0}, "data": {"fps": 25, "size": [16, 16]}, "model": MODEL | {"sampling": OWN},
        "condition": PLAIN,
        "video_vae": {"_target_": "vidchat.tokenizers.stacked.StackedVAE.load", "directory": str(tmp_path / "video")},
        "audio_codec": {
            "_target_": "vidchat.tokenizers.stft_codec.StftCodec.load", "directory": str(tmp_path / "audio"),
        },
        "text_tokenizer": {"_target_": "vidchat.tokenizers.text.ByteTokenizer"},
    }  # fmt: skip
    model = OmegaConf.create(config["model"])
    module = responder_module(model, PLAIN, 25, 0, video, audio, ByteTokenizer(), optimizer={"warmup": 0})

    ones = torch.ones(1, 4, dtype=torch.bool)
    text = ConditionValues(torch.zeros(1, 4).long(), ones)
    steps = torch.arange(4)[None]
    batch = ChunkBatch(
        torch.randn(1, 4, 4, 2, 2), steps, steps == 0, ones, torch.zeros(1, 4, 8, 2).long(), conditions={"text": text}
    )
    callback = composed("train", "stage=sft_dyadic", f"output_dir={tmp_path}", "data.max_chunks=3").callbacks.samples
    loader = SimpleNamespace(val_dataloader=lambda: [batch])
    trainer = SimpleNamespace(datamodule=loader, global_step=7, loggers=[], is_global_zero=True)
    instantiate(callback).sample(trainer, module)
    assert used_sampling == [SAMPLING] * 3, "in the samples of training"

    module.export(tmp_path / "release", config)
    release = load_release(tmp_path / "release")
    assert release.responder.sampling == SAMPLING
    assert _settings(composed("infer"), release).sampling == SAMPLING, "by default in vidchat infer"
    overrides = ["settings.sampling.sets=2", "settings.sampling.codes.top_k=0"]
    changed = replace(SAMPLING, sets=2, codes=CodeSampling(0.7, 0))
    assert _settings(composed("infer", *overrides), release).sampling == changed, (
        "overridden values, and the model's own for the others"
    )
    settings = GenerationSettings(chunks=2)
    assert Conversation(release.responder, video, audio, batch, settings).sampling == SAMPLING, "from Python"


def test_a_release_without_sampling_uses_the_old_defaults(release: Any) -> None:
    assert release.responder.sampling == BEFORE
    assert ChunkSampling() == BEFORE


def test_the_shipped_model_uses_the_sampling_of_configs_model() -> None:
    shipped = build(read_config(ROOT / "checkpoints" / "demo")["model"].get("sampling")) or ChunkSampling()
    assert shipped == instantiate(composed("train", "stage=sft_dyadic").model.sampling)


def test_a_run_resumes_with_another_sampling() -> None:
    """Sampling has no part in training, so it may change, and old checkpoints without it resume."""
    assert not determining_differences({"model": {}}, {"model": {"sampling": OWN}})
    assert determining_differences({"model": {"patch": 1}}, {"model": {"patch": 2}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": 0}, "sampling.sets must be a whole number in [1, 1000], got 0"),
        ({"sets": 2.5}, "sampling.sets must be a whole number"),
        ({"sets": True}, "sampling.sets must be a whole number"),
        ({"flow_steps": 7}, "sampling.flow_steps must be an even number in [2, 1000]"),
        ({"flow_steps": 0}, "sampling.flow_steps must be an even number in [2, 1000]"),
        ({"temperature": -1}, "sampling.temperature must be a number in [0, 100]"),
        ({"temperature": float("nan")}, "sampling.temperature must be a number in [0, 100]"),
        ({"temperature": "hot"}, "sampling.temperature must be a number in [0, 100], got 'hot'"),
        ({"guidance": float("inf")}, "sampling.guidance must be a number"),
        ({"noise_level": 1.0}, "sampling.noise_level must be a number in [0, 1)"),
        ({"codes": {"top_p": 0}}, "sampling.codes.top_p must be a number in (0, 1]"),
        ({"codes": {"top_k": -1}}, "sampling.codes.top_k must be a whole number >= 0"),
        ({"stes": 3}, "its settings are sets, flow_steps, temperature"),
        ({"codes": {"heat": 3}}, "codes.temperature, codes.top_k"),
    ],
)
def test_impossible_sampling_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ChunkSampling().changed(changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
