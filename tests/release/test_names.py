"""Releases hold names and no import paths; the code of other packages' parts runs on trust alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from tests.batches import answers
from tests.generation.conftest import CONDITION, MODEL
from tests.modules import responder_module
from vidchat import registry
from vidchat.cli.infer import answer_question
from vidchat.cli.overrides import override
from vidchat.profiling.describe import Described
from vidchat.profiling.describe import build as build_described
from vidchat.registry import FormatError
from vidchat.release import ReleaseError, load_release, read_config
from vidchat.shipped import CONFIGS
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.training.check import _nameless
from vidchat.training.checkpoint_file import CheckpointError
from vidchat.training.initialise import initialise
from vidchat.training.responder_module import ResponderModule

FOREIGN = """
from pathlib import Path
from vidchat.registry import register
from vidchat.tokenizers.stacked import StackedVAE
Path(__file__).with_suffix(".ran").touch()

@register("mylab_x/vae", by="load")
class BrightVAE(StackedVAE):
    def decode_chunks(self, latents):
        return super().decode_chunks(latents) + 0.5
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Somebody's package, importable here; the file that shows that its code ran."""
    monkeypatch.setattr(registry, "_builders", dict(registry._builders))
    (tmp_path / "mylab_x.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mylab_x", raising=False)
    return tmp_path / "mylab_x.ran"


def forget(monkeypatch: pytest.MonkeyPatch, ran: Path) -> None:
    """As in the process of whoever loads it."""
    registry._builders.pop("mylab_x/vae", None)
    monkeypatch.delitem(sys.modules, "mylab_x", raising=False)
    ran.unlink(missing_ok=True)


def a_run(tmp_path: Path, **condition: Any) -> tuple[ResponderModule, dict[str, Any]]:
    """What `train.py` builds of a config that names a lab's VAE, and that config."""
    torch.manual_seed(0)
    audio = StftCodec(code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2, vocabulary=16)
    audio.save(tmp_path / "audio")
    hydra.utils.get_class("mylab_x.BrightVAE")(4, 4, [8, 8], [1, 1], [1, 1]).save(tmp_path / "video")
    config = {
        "stage": {"name": "x", "steps": 1, "tokenizers": ["video_vae", "audio_codec", "text_tokenizer"]},
        "data": {"fps": 25, "size": [16, 16]}, "model": MODEL,
        "condition": CONDITION | {"text": None, "voice": False, "scores": [], "initiator": False} | condition,
        "video_vae": {"_target_": "mylab_x.BrightVAE.load", "directory": str(tmp_path / "video")},
        "audio_codec": {
            "_target_": "vidchat.tokenizers.stft_codec.StftCodec.load", "directory": str(tmp_path / "audio"),
        },
        "text_tokenizer": {"_target_": "vidchat.tokenizers.text.ByteTokenizer"},
    }  # fmt: skip
    tools = (hydra.utils.instantiate(config["video_vae"]), StftCodec.load(tmp_path / "audio"), ByteTokenizer())
    return responder_module(MODEL, config["condition"], 25, 0, *tools, optimizer={"warmup": 0}), config


def test_a_lab_s_vae_is_trained_with_released_and_loaded_on_trust(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, config = a_run(tmp_path)
    pictures = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    latents = module.video_vae.encode(pictures).transpose(1, 2).detach()
    codes = torch.randint(16, (1, 2, 8, 2))
    optimizer = module.configure_optimizers()["optimizer"]
    module.losses(answers(latents, codes))["loss"].backward()
    optimizer.step()
    module.export(tmp_path / "release", config)

    forget(monkeypatch, lab)
    with pytest.raises(ReleaseError, match=r"needs the package mylab_x, .*trust=\[mylab_x\]") as caught:
        load_release(tmp_path / "release")
    assert "\n" not in str(caught.value)
    assert not lab.exists(), "nothing of it ran"
    assert "mylab_x" not in sys.modules
    with pytest.raises(ReleaseError, match="mylab_x"):
        load_release(tmp_path / "release", trust=["another"])
    assert "loaded from" in initialise(module, tmp_path / "release", config, module.fingerprints)
    assert not lab.exists(), "its weights alone need no trust"

    for trust in (["mylab_x"], "mylab_x"):
        loaded = load_release(tmp_path / "release", trust=trust)
    assert lab.exists()
    assert type(loaded.video_vae).__name__ == "BrightVAE"
    latents = latents.transpose(1, 2)
    assert torch.equal(loaded.video_vae.decode(latents), module.video_vae.decode(latents))


def composed(*words: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("infer", list(words))


def test_infer_trusts_what_its_config_says(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, config = a_run(tmp_path)
    module.export(tmp_path / "release", config)
    forget(monkeypatch, lab)
    Image.new("RGB", (16, 16), (200, 30, 30)).save(tmp_path / "face.png")
    places = {"checkpoint": "release", "reference": "face.png", "output": "answer.mp4"}
    words = [*(override(key, tmp_path / name) for key, name in places.items()), "seconds=0.1", "device=cpu"]
    with pytest.raises(ReleaseError, match=r"trust=\[mylab_x\]"):
        answer_question(composed(*words))
    assert not lab.exists()
    answer_question(composed(*words, "trust=[mylab_x]"))
    assert (tmp_path / "answer.mp4").is_file()


def test_another_model_is_told_from_a_release_s_in_names(lab: Path, tmp_path: Path) -> None:
    module, config = a_run(tmp_path)
    module.export(tmp_path / "release", config)
    wider = config | {"model": MODEL | {"flow": MODEL["flow"] | {"width": 24}}}  # type: ignore[operator]
    tools = (module.video_vae, module.audio_codec, ByteTokenizer())
    other = responder_module(wider["model"], config["condition"], 25, 0, *tools, optimizer={"warmup": 0})
    with pytest.raises(CheckpointError, match=r"differs in the config: model\.flow\.width \(16 -> 24\)$"):
        initialise(other, tmp_path / "release", wider, other.fingerprints)


@pytest.mark.parametrize("part", ["_target_: mylab_x.BrightVAE.load", "type: mylab_x/vae"])
def test_a_model_s_file_for_describe_runs_nobody_s_code(lab: Path, tmp_path: Path, part: str) -> None:
    (tmp_path / "model.yaml").write_text(f"{{_target_: vidchat.model.responder.Responder, backbone: {{{part}}}}}")
    with pytest.raises(FormatError, match="not part of vidchat"):
        build_described(Described(model=str(tmp_path / "model.yaml")))
    assert not lab.exists()


def test_a_wrong_key_is_named() -> None:
    with pytest.raises(registry.WrongArguments, match=r"a key of flow_head is wrong or missing: .*'widht'"):
        registry.build({"type": "flow_head", "widht": 16, "blocks": 1})


def test_a_release_holds_names_only(lab: Path, tmp_path: Path) -> None:
    module, config = a_run(tmp_path)
    module.export(tmp_path / "release", config)
    text = (tmp_path / "release" / "config.yaml").read_text()
    assert "_target_" not in text
    assert "vidchat." not in text
    assert "mylab_x." not in text
    kept = read_config(tmp_path / "release")
    assert kept["model"]["flow"] == {"type": "flow_head", "width": 16, "blocks": 1}
    assert kept["video_vae"] == {"type": "mylab_x/vae", "directory": "video_vae"}
    for name in ("video_vae", "audio_codec"):
        kept[name]["directory"] = str(tmp_path / "release" / name)
    module.export(tmp_path / "again", kept | {"data": config["data"]})
    assert (tmp_path / "again" / "config.yaml").read_text() == text


def test_a_part_that_no_release_could_name_is_refused_before_training(lab: Path, tmp_path: Path) -> None:
    _, config = a_run(tmp_path)
    assert _nameless(config) == []
    nameless = config | {"video_vae": {"_target_": "vidchat.tokenizers.chunkwise.ChunkwiseVAE"}}
    assert ["video_vae: " in message and "register" in message for message in _nameless(nameless)] == [True]
    lost = config | {"audio_codec": {"_target_": "no_such_lab.Codec"}}
    assert ["audio_codec: " in message and "cannot be imported" in message for message in _nameless(lost)] == [True]
