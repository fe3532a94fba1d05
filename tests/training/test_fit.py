"""A model that fits neither its frames nor its device is refused by its config alone, in one sentence."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.batches import answers
from vidchat.batch import ChunkBatch
from vidchat.cli import train as train_script
from vidchat.profiling.describe import Described, build
from vidchat.tokenizers.layout import audio_layout, video_layout
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training import check, fit, machine
from vidchat.training.check import check_config
from vidchat.training.fit import FitError, check_fit, latent_grid

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("pretrain_visual", "pretrain_av", "sft_dyadic")
VIDEO = ("demo", "wan21", "wan22", "hunyuan15", "cosmos", "ltx", "packed")
AUDIO = ("demo", "encodec_24khz", "mimi")


def config(*words: str, stage: str = "sft_dyadic") -> Any:
    """A run's config; its data set is rendered when it is needed."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"stage={stage}", "data=synthetic", *words])


def plain(*words: str, stage: str = "sft_dyadic") -> dict[str, Any]:
    resolved: Any = OmegaConf.to_container(config(*words, stage=stage), resolve=True)
    return resolved


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 80 GB."""
    monkeypatch.setattr(fit, "device_memory", lambda trainer: ("a GPU", 80e9))
    monkeypatch.setattr(machine, "_accelerator", lambda trainer: [])


def meta_batch(model: Any, rows: int, columns: int) -> ChunkBatch:
    """Two chunks heard and two said, without values."""

    def latents(chunks: int) -> torch.Tensor:
        return torch.empty(1, chunks, model.latent.channels, rows, columns, device="meta")

    def codes(chunks: int) -> torch.Tensor | None:
        shape = model.code_shape
        size = (1, chunks, shape.codec_frames, shape.codebooks) if shape else None
        return None if size is None else torch.zeros(size, dtype=torch.long, device="meta")

    return answers(latents(3), codes(2), heard_latents=latents(2), heard_codes=codes(2))


@pytest.mark.parametrize(("video", "audio"), zip(VIDEO, itertools.cycle(AUDIO)))
@pytest.mark.usefixtures("gpu")
def test_every_tokenizer_of_the_docs_goes_with_the_base_model(video: str, audio: str) -> None:
    words = ["model=base", f"video_vae={video}", f"audio_codec={audio}", "trainer=gpu", "data.batch_size=1"]
    checked = plain(*words, "data.size=[480,768]")
    model = check_fit(checked)
    assert model is not None
    vae = video_layout(checked["video_vae"], checked["video_layout"])
    assert vae is not None
    for size in ([480, 768], [768, 480]):
        grid = latent_grid(size, vae, model.patch, model.ratio)
        with torch.no_grad():
            hidden = model.train().run_backbone(meta_batch(model, *grid))
        assert hidden.shape == (1, 4, 360 + model.codec_frames, 1024), "a backbone's token is 32 x 32 pixels with each"
        assert hidden.is_meta


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("model", ["tiny", "base"])
@pytest.mark.usefixtures("gpu")
def test_the_demo_tokenizers_go_with_every_stage_and_model(stage: str, model: str) -> None:
    assert check_fit(plain(f"model={model}", stage=stage)) is not None


def test_layouts_are_those_of_the_tokenizers(tmp_path: Path) -> None:
    video = StackedVAE(6, 4, [8, 8], [1, 1], [1, 1], temporal_stride=8)
    video.save(tmp_path / "video")
    codec = StftCodec(codebooks=3, vocabulary=16, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(tmp_path / "audio")
    saved = {"_target_": "vidchat.tokenizers.stacked.StackedVAE.load", "directory": str(tmp_path / "video")}
    found = video_layout(saved)
    assert found is not None
    assert vars(found) == {name: getattr(video, name) for name in ("channels", "temporal_stride", "spatial_stride")}
    heard = audio_layout(
        {"_target_": "vidchat.tokenizers.stft_codec.StftCodec.load", "directory": str(tmp_path / "audio")}
    )
    assert heard is not None
    assert vars(heard) == {name: getattr(codec, name) for name in ("sample_rate", "hop", "codebooks", "vocabulary")}
    assert video_layout(plain("video_vae=wan21", "video_vae.name=elsewhere")["video_vae"], None) is None
    other = plain("video_vae=wan21", "video_vae.name=elsewhere")
    assert video_layout(other["video_vae"], other["video_layout"]) is None, "of other weights nothing is known"
    fewer = plain("audio_codec=mimi", "audio_codec.codebooks=4")
    assert getattr(audio_layout(fewer["audio_codec"], fewer["audio_layout"]), "codebooks", None) == 4


@pytest.mark.parametrize("name", ["wan21", "hunyuan15", "cosmos", "ltx"])
def test_published_layouts_are_those_of_the_classes_defaults(name: str) -> None:
    import diffusers

    from vidchat.tokenizers.causal import CausalVAE

    config = plain(f"video_vae={name}")
    with torch.device("meta"):
        own = getattr(diffusers, config["video_vae"]["kind"])()
    with patch.object(CausalVAE, "_set_published_statistics"):
        vae = CausalVAE(own)
    expected = {key: getattr(vae, key) for key in ("channels", "temporal_stride", "spatial_stride")}
    assert {key: value for key, value in config["video_layout"].items() if key != "of"} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.size=[96,64]", "model.patch=2"], "data.size=[96, 64] gives latents of 6 x 4, which do not divide"),
        (["data.size=[96,100]"], "must be multiples of 16 on both sides"),
        (["model=base", "video_vae=wan22", "data.size=[480,760]"], "must be multiples of 16"),
        (["model=base", "video_vae=wan21", "data.size=[480,760]"], "gives latents of 60 x 95"),
        (["model=base", "video_vae=ltx", "data.size=[480,768]", "model.ratio=2"], "gives latents of 15 x 24"),
        (["model=base", "video_vae=wan21", "data.size=[480,768]", "trainer=gpu"], "has 80; lower data.batch_size (1"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_what_does_not_fit_is_told_before_anything_is_loaded(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_script, "instantiate", lambda *_: pytest.fail("something was built"))
    with pytest.raises(FitError) as caught:
        train_script.train(config(*words))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_s_own_stage_is_held_to_its_stride() -> None:
    with pytest.raises(FitError, match="multiples of 16"):
        check_fit(plain("data.size=[96,100]", stage="tokenizer_video"))
    assert check_fit(plain("data.size=[90,100]", stage="tokenizer_audio")) is None, "which sees no frame"


def test_a_tokenizer_that_only_loading_can_tell_of_is_checked_once_it_is_loaded() -> None:
    config = plain("video_vae.directory=x", "video_vae._target_=vidchat.tokenizers.causal.CausalVAE.from_pretrained")
    assert check_fit(config) is None
    with pytest.raises(FitError, match="gives latents of 3 x 3"):
        check_fit(config, StackedVAE(4, 32, [8], [1], [1]))


def test_training_checks_again_with_the_tokenizers_it_has_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before their tokens are made, and where the config could not tell."""
    monkeypatch.setattr(train_script, "check_config", lambda made: OmegaConf.to_container(made, resolve=True))
    with pytest.raises(FitError, match="gives latents of 6 x 4"):
        train_script.train(config("data.size=[96,64]", "model.patch=2", f"output_dir={tmp_path}"))


def test_the_limit_is_the_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """More recomputation, fewer clips and half precision each make a step fit that did not."""
    words = ["model=base", "video_vae=wan21", "audio_codec=mimi", "data.size=[480,768]", "data.batch_size=2"]
    recompute = [f"model.{part}.recompute=true" for part in ("backbone", "spatial", "depth")]
    for memory, more in ((131e9, []), (88e9, ["data.batch_size=1"]), (88e9, ["trainer.precision=bf16-mixed"]),
                         (75e9, recompute)):  # fmt: skip
        monkeypatch.setattr(fit, "device_memory", lambda trainer, memory=memory: ("it", memory))
        if more:
            with pytest.raises(FitError, match=f"it has {memory / 1e9:.0f}"):
                check_fit(plain(*words))
        assert check_fit(plain(*words, *more)) is not None


def test_processes_share_a_machine_s_memory() -> None:
    one, two = (fit.device_memory({"accelerator": "cpu", "devices": count}) for count in (1, 2))
    assert one is not None
    assert two is not None
    assert one[1] == 2 * two[1] > 1e9


@pytest.mark.usefixtures("gpu")
def test_a_large_model_with_the_small_one_s_learning_rate_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    check_config(config("model=base"))
    assert "which suits model=tiny" in caplog.text
    caplog.clear()
    check_config(config("model=base", "stage.optimizer.lr=1e-4"))
    check_config(config("model=tiny"))
    assert not caplog.text
    assert check.advice is fit.advice


def test_the_base_model_has_what_made_the_demo_understand() -> None:
    small, large = (build(Described(model=name))[0].objective for name in ("tiny", "base"))
    assert large.first_codebook == small.first_codebook > 1
    assert large.code_dropout == small.code_dropout > 0
    assert large.spatial_chunks


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_a_gpu_is_fed_by_several_processes(trainer: str) -> None:
    assert plain(f"trainer={trainer}")["data"]["num_workers"] > 2
    assert plain(f"trainer={trainer}", "data.num_workers=0")["data"]["num_workers"] == 0


def test_lightning_s_advice_about_workers_is_heard() -> None:
    assert "workers" not in Path(train_script.__file__).read_text()
