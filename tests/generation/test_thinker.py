"""Answers that are conditioned on a thinker's features, from files to a file."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from tests.generation.conftest import CONDITION, MODEL
from tests.modules import responder_module
from tests.tiny_thinker import save_tiny_thinker
from vidchat.cli import infer as infer_script
from vidchat.data.media.read import read_clip, write_clip
from vidchat.dialogue import Clip
from vidchat.generation.answer import Question, QuestionError, check_question, read_question
from vidchat.generation.conversation import Conversation, GenerationSettings
from vidchat.model.generation_state import ChunkSampling
from vidchat.release import ReleaseError, load_release
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.weights import TokenizerError

ROOT = Path(__file__).parents[2]
PLAIN = CONDITION | {"text": None, "voice": False, "scores": []}


def node(folder: Path) -> dict[str, Any]:
    return {
        "_target_": "vidchat.tokenizers.thinker.Thinker", "name": str(folder), "dtype": "float32", "min_pixels": 3136,
        "max_pixels": 9408,
    }  # fmt: skip


@pytest.fixture(scope="module")
def thinker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_thinker(tmp_path_factory.mktemp("thinker"))


@pytest.fixture(scope="module", params=[True, False], ids=["with the clip", "alone"])
def thinker_release(request, release_folder, thinker_folder, tmp_path_factory) -> Path:
    """A release of a responder that reads a thinker's features, with or without the initiator's own tokens."""
    config = OmegaConf.to_container(OmegaConf.load(release_folder / "config.yaml"))
    video, audio = StackedVAE.load(release_folder / "video_vae"), StftCodec.load(release_folder / "audio_codec")
    config |= {
        "data": {"fps": 25, "size": [16, 16]},
        "condition": PLAIN | {"initiator": request.param, "features": 32},
        "thinker": node(thinker_folder),
    }
    for name in ("video_vae", "audio_codec"):
        config[name]["directory"] = str(release_folder / name)
    thinker = Thinker(**{key: value for key, value in config["thinker"].items() if key != "_target_"})
    module = responder_module(
        OmegaConf.create(MODEL), config["condition"], 25, 0, video, audio, ByteTokenizer(), thinker=thinker
    )
    for parameter in module.responder.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    module.ema.reset()
    folder = tmp_path_factory.mktemp("release") / "release"
    module.export(folder, config)
    return folder


@pytest.fixture
def question(tmp_path: Path) -> Question:
    frames = torch.randint(256, (50, 3, 40, 60), dtype=torch.uint8)
    write_clip(tmp_path / "a.mp4", frames, 0.1 * torch.randn(50 * 1600), fps=30, sample_rate=48000)
    Image.new("RGB", (33, 47), (200, 30, 30)).save(tmp_path / "b.png")
    return Question(tmp_path / "b.png", initiator=tmp_path / "a.mp4")


def test_the_answer_depends_on_the_thinker_s_features(thinker_release: Path, question: Question) -> None:
    release = load_release(thinker_release)
    batch = read_question(release, question)
    chunks = math.floor((50 / 30 * 25 - 1) / 4)
    features = batch.conditions["features"]
    assert features.values.shape[2] == 32
    ids = release.thinker._ids([2, 4, 4], 1.0, 4 * chunks)[0].tolist()
    assert features.values.shape[1] == len(ids) - ids.index(265), "four audio tokens per chunk, two seconds of video"
    assert features.mask.all()
    settings = GenerationSettings(chunks=1, sampling=ChunkSampling(sets=2, flow_steps=2))
    parts, chunks = (release.responder, release.video_vae, release.audio_codec), []
    for _ in range(2):
        chunks += Conversation(*parts, batch, settings).answer()
        features.values = features.values.flip(1)
    assert not torch.equal(chunks[0].latents, chunks[1].latents)


def test_a_model_that_listens_is_not_told_what_the_thinker_knows_of_the_future(
    thinker_release: Path, question: Question
) -> None:
    release = load_release(thinker_release)
    if not release.hears:
        with pytest.raises(QuestionError, match="does not hear"):
            read_question(release, replace(question, listen=True))
        return
    assert not read_question(release, replace(question, listen=True)).conditions["features"].mask.any()


def test_a_release_names_its_thinker_and_does_not_contain_it(
    thinker_release: Path, thinker_folder: Path, tmp_path: Path
) -> None:
    assert not any("thinker" in path.name for path in thinker_release.iterdir())
    release = load_release(thinker_release)
    assert "model" not in vars(release.thinker), "weights are read when they are first needed"
    moved = shutil.copytree(thinker_folder, tmp_path / "moved")
    assert load_release(thinker_release, thinker=str(moved)).thinker.name == str(moved)
    other = save_tiny_thinker(tmp_path / "other", seed=1)
    with pytest.raises(ReleaseError, match="the thinker has the fingerprint"):
        load_release(thinker_release, thinker=str(other))
    with pytest.raises(ReleaseError, match="has no configuration"):
        load_release(thinker_release, thinker=str(tmp_path / "nowhere"))


def test_a_question_without_a_clip_or_a_thinker_is_refused(thinker_release: Path, question: Question) -> None:
    release = load_release(thinker_release)
    with pytest.raises(QuestionError, match="initiator=CLIP"):
        check_question(release, Question(question.reference))
    release.thinker = None
    with pytest.raises(QuestionError, match="its release names no thinker"):
        check_question(release, question)


def test_the_widths_must_agree(thinker_folder: Path, release) -> None:
    thinker = Thinker(str(thinker_folder))
    tokenizers = (release.video_vae, release.audio_codec, ByteTokenizer())
    with pytest.raises(TokenizerError, match=r"set condition\.features=32"):
        responder_module(OmegaConf.create(MODEL), PLAIN, 25, 0, *tokenizers, thinker=thinker)


def test_infer_answers_with_a_thinker(thinker_release: Path, question: Question, tmp_path: Path) -> None:
    words = [
        f"initiator={question.initiator}", f"reference={question.reference}", f"checkpoint={thinker_release}",
        f"output={tmp_path / 'out.mp4'}", "seconds=0.5", "settings.ends=false", "device=cpu",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        infer_script.answer_question(compose("infer", words))
    assert len(read_clip(Clip(tmp_path / "out.mp4", ""), fps=25, size=(16, 16), sample_rate=16000).frames) == 16
