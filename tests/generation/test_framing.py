"""An answer has the orientation of its reference if the model knows both; what is cropped causes a warning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from vidchat.data.media.read import frame_size, read_clip, write_clip
from vidchat.dialogue import Clip
from vidchat.generation.answer import Question, answer, read_question
from vidchat.generation.conversation import GenerationSettings
from vidchat.model.generation_state import ChunkSampling
from vidchat.release import Release


def image(path: Path, height: int, width: int) -> Path:
    Image.new("RGB", (width, height), (200, 30, 30)).save(path)
    return path


def clip(path: Path, height: int, width: int) -> Path:
    write_clip(path, torch.zeros(30, 3, height, width, dtype=torch.uint8), 0.1 * torch.randn(30 * 640), 25, 16000)
    return path


def wide(release: Release, allow_portrait: bool) -> Release:
    return replace(release, config={**release.config, "size": [16, 32], "allow_portrait": allow_portrait})


@pytest.mark.parametrize(
    ("allow_portrait", "reference", "size"),
    [(True, (64, 32), (32, 16)), (True, (32, 64), (16, 32)), (False, (64, 32), (16, 32)), (True, (40, 40), (32, 16))],
)
def test_the_answer_has_the_reference_s_orientation_if_the_model_knows_both(
    release, tmp_path, allow_portrait, reference, size
):
    model = wide(release, allow_portrait)
    question = Question(image(tmp_path / "b.png", *reference), clip(tmp_path / "a.mp4", *reference), text="hello")
    assert read_question(model, question).latents.shape[-2:] == (size[0] // 8, size[1] // 8)
    settings = GenerationSettings(chunks=2, ends=False, sampling=ChunkSampling(sets=2, flow_steps=2))
    list(answer(model, question, settings, tmp_path / "out.mp4"))
    media = read_clip(Clip(tmp_path / "out.mp4", ""), fps=25, size=size, sample_rate=16000)
    assert media.frames.shape == (8, 3, *size)


def test_visible_cropping_causes_one_warning_per_file(release, tmp_path, caplog):
    model = wide(release, allow_portrait=False)
    fitting, tall = image(tmp_path / "fitting.png", 64, 128), image(tmp_path / "tall.png", 64, 32)
    similar = clip(tmp_path / "similar.mp4", 160, 316)  # 1.25 % of the height is cropped
    read_question(model, Question(fitting, similar, text="hello"))
    assert not caplog.records
    read_question(model, Question(tall, clip(tmp_path / "square.mp4", 32, 32), text="hello"))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition("=")[0] for message in messages] == ["reference", "initiator"]
    assert "tall.png is 64x32 (height x width) and the answer is 16x32: 75 % of its height is cropped" in messages[0]
    assert "50 % of its height" in messages[1]


def test_the_initiator_follows_the_reference(release, tmp_path, caplog):
    """In training all clips of a dialogue have one orientation, so an initiator of the other one is cropped."""
    model = wide(release, allow_portrait=True)
    question = Question(image(tmp_path / "b.png", 64, 32), clip(tmp_path / "a.mp4", 32, 64), text="hello")
    settings = GenerationSettings(chunks=1, sampling=ChunkSampling(sets=2, flow_steps=2))
    (chunk,) = answer(model, question, settings, tmp_path / "out.mp4", film=tmp_path / "film.mp4")
    assert chunk.latents.shape[-2:] == (4, 2)
    assert frame_size(tmp_path / "film.mp4") == (32, 2 * 16)
    assert [record.args[0] for record in caplog.records] == ["initiator"]


def test_releases_without_the_key_know_one_orientation(release):
    assert not replace(
        release, config={k: v for k, v in release.config.items() if k != "allow_portrait"}
    ).allow_portrait
    assert release.config["allow_portrait"] is False
