"""The thinker on a random Qwen2.5-Omni of the same class."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5OmniProcessor, WhisperFeatureExtractor

from tests.tiny_thinker import WIDTH, save_tiny_thinker
from vidchat.tokenizers.thinker import Thinker
from vidchat.tokenizers.thinker.prompt import SYSTEM, chat, media, video_places
from vidchat.tokenizers.thinker.thinker import audio_tokens
from vidchat.tokenizers.weights import TokenizerError

SIZE = {"min_pixels": 4 * 784, "max_pixels": 12 * 784}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_thinker(tmp_path_factory.mktemp("thinker"))


def thinker(folder: Path, **settings: Any) -> Thinker:
    return Thinker(str(folder), **({"dtype": "float32"} | SIZE | settings))


def clip(seconds: float = 5.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames at 25 per second and audio of 16 kHz."""
    count = round(seconds * 25)
    return torch.randint(256, (count, 3, 60, 90), dtype=torch.uint8), 0.1 * torch.randn(count * 640)


def spied(model: Any) -> list[dict[str, Any]]:
    """What reaches the language model from now on."""
    calls: list[dict[str, Any]] = []
    model.model.language_model.register_forward_pre_hook(lambda _, args, given: calls.append(given), with_kwargs=True)
    return calls


def test_features_are_hidden_states_and_raw_embeddings(folder: Path) -> None:
    mind = thinker(folder)
    frames, waveform = clip()
    calls = spied(mind.model)
    features = mind.think(frames, 25, waveform)
    assert features.shape[1] == mind.width == 2 * WIDTH
    assert not features.requires_grad
    assert features.dtype == torch.float32
    inputs = mind.inputs(frames, 25, waveform)
    start = inputs["input_ids"][0].tolist().index(265)
    assert len(features) == inputs["input_ids"].shape[1] - start
    states = mind.model.model(**inputs, output_hidden_states=True).hidden_states
    for half, wanted in ((features[:, :WIDTH], states[-1][0, start:]), (features[:, WIDTH:], states[0][0, start:])):
        unit = wanted / wanted.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(half, unit, atol=1e-3, rtol=0)
    # The raw half at the audio tokens' places is the audio tower's output, and at the video tokens' the vision tower's.
    embedded, ids = calls[0]["inputs_embeds"][0], inputs["input_ids"][0]
    audio = mind.model.get_audio_features(inputs["input_features"], inputs["feature_attention_mask"]).last_hidden_state
    torch.testing.assert_close(embedded[ids == 260], audio, atol=1e-5, rtol=0)
    seen = mind.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    torch.testing.assert_close(embedded[ids == 262], torch.cat(list(seen)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fps", [2.0, 4.0, 3.0])
def test_sound_and_picture_of_one_instant_share_their_time(folder: Path, fps: float) -> None:
    """The positions that the model uses: both towers' tokens count 40 ms from the same start, whatever their order."""
    mind = thinker(folder, fps=fps)
    frames, waveform = clip()
    calls = spied(mind.model)
    mind.think(frames, 25, waveform)
    ids = mind.inputs(frames, 25, waveform)["input_ids"][0]
    time = calls[0]["position_ids"][-3, 0]
    video, audio = time[ids == 262], time[ids == 260]
    assert video[0] == audio[0]
    assert audio.tolist() == list(range(int(audio[0]), int(audio[0]) + 130)), "25 a second"
    grids = (time[ids == 262].unique() - audio[0]).tolist()
    assert grids == [int(np.float32(2 / fps) * 25 * k) for k in range(len(grids))]
    assert len(grids) == -(-int(5.16 * fps + 1) // 2)
    assert calls[0]["position_ids"][-3, 0, -1] > time[ids == 262].max(), "its answer comes after all of it"
    two_seconds = [(time[places] - audio[0]) // 50 for places in (ids == 262, ids == 260)]
    order = torch.cat(two_seconds)[torch.cat([(ids == token).nonzero()[:, 0] for token in (262, 260)]).argsort()]
    assert (order.diff() >= 0).all(), "blocks of two seconds follow each other"


def test_hearing_is_the_processor_s_padding_to_300_seconds(folder: Path, tmp_path: Path) -> None:
    waveform = 0.1 * torch.randn(16000 + 77)
    for side in ("right", "left"):
        extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=10, padding_side=side)
        there = tmp_path / side
        shutil.copytree(folder, there)
        extractor.save_pretrained(there)
        whole = extractor(
            waveform.numpy(), sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        features, mask = thinker(there)._hear(waveform)
        theirs = whole["input_features"][0][:, whole["attention_mask"][0].bool()]
        torch.testing.assert_close(features[0][:, mask[0].bool()], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [16, 99, 100, 101, 3000])
def test_audio_tokens_are_counted_as_the_tower_counts(folder: Path, frames: int) -> None:
    mask = torch.ones(1, frames, dtype=torch.long)
    heard = thinker(folder).model.get_audio_features(torch.randn(1, 128, frames), mask).last_hidden_state
    assert len(heard) == audio_tokens(frames)


@pytest.mark.parametrize(("grids", "audio"), [(1, 4), (3, 130), (6, 130), (5, 30)])
def test_the_order_of_tokens_is_the_processor_s(grids: int, audio: int) -> None:
    """The processor cannot be built without torchvision, but its method can be called."""
    stand_in = SimpleNamespace(
        audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>", audio_token="<|AUDIO|>",
        video_token="<|VIDEO|>", video_processor=SimpleNamespace(merge_size=2),
        get_chunked_index=lambda *given: Qwen2_5OmniProcessor.get_chunked_index(None, *given),
    )  # fmt: skip
    theirs = Qwen2_5OmniProcessor.replace_video_with_audio_token(
        stand_in,
        {"video_grid_thw": np.array([[grids, 4, 6]]), "video_second_per_grid": [1.0]},
        0,
        {"num_audio_tokens": [audio]},
        0,
        position_id_per_seconds=25,
        seconds_per_chunk=2.0,
    )
    assert media(video_places(6, grids, 25.0, 50), audio, 50) == theirs


def test_without_sound_it_sees(folder: Path) -> None:
    mind = thinker(folder)
    frames, _ = clip(2.0)
    ids = mind.inputs(frames, 25, None)["input_ids"][0].tolist()
    assert 260 not in ids
    assert 263 not in ids
    assert torch.isfinite(mind.think(frames, 25, None)).all()


@pytest.mark.parametrize("rate", [16000, 24000])
def test_a_cut_clip_is_seen_from_picture_1_on_and_heard_at_its_own_rate(folder: Path, rate: int) -> None:
    mind = thinker(folder)
    frames, _ = clip(2.0)
    tone = torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000) * 0.5
    told = SimpleNamespace(
        frames=torch.cat([255 - frames[:1], frames[:25]]),
        waveform=torch.sin(torch.arange(rate) * 2 * torch.pi * 440 / rate) * 0.5,
        fps=25,
        sample_rate=rate,
    )
    wanted = mind.think(frames[:25], 25, tone)
    features = mind.encode(told)
    assert features.shape == wanted.shape
    assert (features - wanted).abs().mean() < (1e-6 if rate == 16000 else 0.02)
    told.waveform = torch.zeros(rate)
    assert torch.equal(mind.encode(told), mind.think(frames[:25], 25, None))


def test_it_listens_and_it_looks(folder: Path) -> None:
    mind = thinker(folder)
    frames, waveform = clip(2.0)
    features = mind.think(frames, 25, waveform)
    louder, other = waveform.clone(), frames.clone()
    louder[-4000:] *= 3
    other[-13:] = 255 - other[-13:]
    for changed in (mind.think(frames, 25, louder), mind.think(other, 25, waveform)):
        difference = (changed - features).abs().amax(1)
        assert difference[-1] > 1e-4, "the place where the answer begins has seen it"
        assert difference[0] == 0, "and what came before has not: it is causal"


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_an_earlier_layer_is_the_whole_model_s(folder: Path, layer: int) -> None:
    frames, waveform = clip(1.0)
    whole, early = thinker(folder), thinker(folder, layer=layer)
    inputs = whole.inputs(frames, 25, waveform)
    wanted = whole.model.model(**inputs, output_hidden_states=True).hidden_states[layer][0, -1]
    wanted = wanted / wanted.square().mean().sqrt()
    torch.testing.assert_close(early.think(frames, 25, waveform)[-1, :WIDTH], wanted, atol=1e-3, rtol=0)
    assert len(early.model.model.language_model.layers) == layer


def test_a_whole_qwen_omni_gives_its_thinker(folder: Path, tmp_path: Path) -> None:
    """The layout of the published repository: one configuration in another, and every tensor under `thinker.`."""
    shutil.copytree(folder, tmp_path / "whole")
    tensors = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"talker.x": torch.zeros(2)}, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    config = {"model_type": "qwen2_5_omni", "thinker_config": json.loads((folder / "config.json").read_text())}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    frames, waveform = clip(1.0)
    alone, whole = thinker(folder), thinker(tmp_path / "whole")
    assert torch.equal(alone.think(frames, 25, waveform), whole.think(frames, 25, waveform))
    assert alone.fingerprint() == whole.fingerprint()


def test_half_precision_is_near(folder: Path) -> None:
    frames, waveform = clip(1.0)
    exact, half = (thinker(folder, dtype=kind).think(frames, 25, waveform) for kind in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.05


def test_the_fingerprint_names_weights_and_settings(folder: Path, tmp_path: Path) -> None:
    first = thinker(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "moved")
    assert thinker(tmp_path / "moved").fingerprint() == first
    changes: list[dict[str, Any]] = [{"layer": 2}, {"fps": 4.0}, {"system": "x"}, {"max_pixels": 9999}]
    others = [thinker(folder, **change) for change in changes]
    others.append(thinker(save_tiny_thinker(tmp_path / "other", seed=1)))
    assert len({first, *(other.fingerprint() for other in others)}) == 6


def test_weights_are_given_back_and_read_again(folder: Path) -> None:
    mind = thinker(folder)
    frames, waveform = clip(1.0)
    before = mind.think(frames, 25, waveform)
    mind.unload()
    assert "model" not in vars(mind)
    assert torch.equal(mind.think(frames, 25, waveform), before)


def test_errors_name_the_cure(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no configuration"):
        Thinker(str(tmp_path / "nowhere"))
    with pytest.raises(TokenizerError, match="3 layers"):
        thinker(folder, layer=4)
    with pytest.raises(TokenizerError, match="at least one frame a second"):
        thinker(folder, fps=0.5)
    with pytest.raises(TokenizerError, match="300 s at most"):
        thinker(folder).inputs(clip(1.0)[0], 25, torch.zeros(301 * 16000))
    shutil.copytree(folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(TokenizerError, match="holds no"):
        thinker(tmp_path / "empty").fingerprint()
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        thinker(tmp_path / "empty").think(*clip(1.0)[:1], 25, None)
    with pytest.raises(TokenizerError, match="must be one of bfloat16"):
        thinker(folder, dtype="int8")
    shutil.copytree(folder, tmp_path / "part")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, tmp_path / "part" / "model.safetensors")
    with pytest.raises(TokenizerError, match="its weights lack"):
        thinker(tmp_path / "part").think(*clip(1.0)[:1], 25, None)
    shutil.copytree(folder, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(TokenizerError, match="tokenizer"):
        thinker(tmp_path / "mute").think(*clip(1.0)[:1], 25, None)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="Qwen's processor needs torchvision")
def test_everything_is_the_processor_s(folder: Path) -> None:
    """Prompt, patches and audio together, from the processor itself."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

    size = {"shortest_edge": SIZE["min_pixels"], "longest_edge": SIZE["max_pixels"]}
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessorPil(),
        Qwen2VLVideoProcessor(),
        WhisperFeatureExtractor(feature_size=128, chunk_length=10),
        AutoTokenizer.from_pretrained(folder),
    )
    frames, waveform = clip(4.8)
    shown = frames[[int(12.5 * i) for i in range(10)]]
    theirs = processor(
        text=chat("<|VIDEO|>", SYSTEM),
        videos=[shown.numpy()],
        audio=[waveform.numpy()],
        audio_from_video_indices=[0],
        load_audio_from_video=True,
        videos_kwargs={"size": size},
        return_tensors="pt",
    )
    ours = thinker(folder).inputs(frames, 25, waveform)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    assert float(ours["video_second_per_grid"][0]) == float(theirs["video_second_per_grid"][0])
    torch.testing.assert_close(ours["pixel_values_videos"], theirs["pixel_values_videos"], atol=1e-5, rtol=0)
    heard = [x["input_features"][0][:, x["feature_attention_mask"][0].bool()] for x in (ours, theirs)]
    torch.testing.assert_close(*heard, atol=1e-5, rtol=0)
