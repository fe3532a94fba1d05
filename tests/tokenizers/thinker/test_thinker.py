"""The thinker, tested on a random Qwen2.5-Omni of the same class."""

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
from vidchat.tokenizers.thinker.prompt import SYSTEM, chat, placeholders, video_blocks
from vidchat.tokenizers.thinker.thinker import count_audio_tokens
from vidchat.tokenizers.weights import TokenizerError

SIZE = {"min_pixels": 4 * 784, "max_pixels": 12 * 784}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_thinker(tmp_path_factory.mktemp("thinker"))


def make_thinker(folder: Path, **settings: Any) -> Thinker:
    return Thinker(str(folder), **({"dtype": "float32"} | SIZE | settings))


def clip(seconds: float = 5.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Random frames at 25 fps and audio at 16 kHz."""
    count = round(seconds * 25)
    return torch.randint(256, (count, 3, 60, 90), dtype=torch.uint8), 0.1 * torch.randn(count * 640)


def record_inputs(model: Any) -> list[dict[str, Any]]:
    """Returns a list that collects the inputs of every later call of the language model."""
    calls: list[dict[str, Any]] = []
    model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    return calls


def test_features_are_hidden_states_and_raw_embeddings(folder: Path) -> None:
    thinker = make_thinker(folder)
    frames, waveform = clip()
    calls = record_inputs(thinker.model)
    features = thinker.compute_features(frames, 25, waveform)
    assert features.shape[1] == thinker.width == 2 * WIDTH
    assert not features.requires_grad
    assert features.dtype == torch.float32
    inputs = thinker.inputs(frames, 25, waveform)
    start = inputs["input_ids"][0].tolist().index(265)
    assert len(features) == inputs["input_ids"].shape[1] - start
    states = thinker.model.model(**inputs, output_hidden_states=True).hidden_states
    for half, expected in ((features[:, :WIDTH], states[-1][0, start:]), (features[:, WIDTH:], states[0][0, start:])):
        unit = expected / expected.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(half, unit, atol=1e-3, rtol=0)
    # The embedding of an audio token is the output of the audio tower, that of a video token of the vision tower.
    embedded, ids = calls[0]["inputs_embeds"][0], inputs["input_ids"][0]
    audio = thinker.model.get_audio_features(
        inputs["input_features"], inputs["feature_attention_mask"]
    ).last_hidden_state
    torch.testing.assert_close(embedded[ids == 260], audio, atol=1e-5, rtol=0)
    vision = thinker.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"]).pooler_output
    torch.testing.assert_close(embedded[ids == 262], torch.cat(list(vision)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fps", [2.0, 4.0, 3.0])
def test_audio_and_video_of_one_instant_share_their_position(folder: Path, fps: float) -> None:
    """Positions that the model uses: tokens of both towers count steps of 40 ms from the same start, in any order."""
    thinker = make_thinker(folder, fps=fps)
    frames, waveform = clip()
    calls = record_inputs(thinker.model)
    thinker.compute_features(frames, 25, waveform)
    ids = thinker.inputs(frames, 25, waveform)["input_ids"][0]
    time = calls[0]["position_ids"][-3, 0]
    video, audio = time[ids == 262], time[ids == 260]
    assert video[0] == audio[0]
    assert audio.tolist() == list(range(int(audio[0]), int(audio[0]) + 130)), "25 a second"
    grids = (time[ids == 262].unique() - audio[0]).tolist()
    assert grids == [int(np.float32(2 / fps) * 25 * k) for k in range(len(grids))]
    assert len(grids) == -(-int(5.16 * fps + 1) // 2)
    assert calls[0]["position_ids"][-3, 0, -1] > time[ids == 262].max(), "the answer follows the whole clip"
    two_seconds = [(time[mask] - audio[0]) // 50 for mask in (ids == 262, ids == 260)]
    order = torch.cat(two_seconds)[torch.cat([(ids == token).nonzero()[:, 0] for token in (262, 260)]).argsort()]
    assert (order.diff() >= 0).all(), "blocks of two seconds follow each other"


def test_mel_features_equal_those_of_the_processor_padded_to_300_seconds(folder: Path, tmp_path: Path) -> None:
    waveform = 0.1 * torch.randn(16000 + 77)
    for side in ("right", "left"):
        extractor = WhisperFeatureExtractor(feature_size=128, chunk_length=10, padding_side=side)
        copied = tmp_path / side
        shutil.copytree(folder, copied)
        extractor.save_pretrained(copied)
        whole = extractor(
            waveform.numpy(), sampling_rate=16000, padding="max_length", return_attention_mask=True, return_tensors="pt"
        )
        features, mask = make_thinker(copied)._mel_features(waveform)
        theirs = whole["input_features"][0][:, whole["attention_mask"][0].bool()]
        torch.testing.assert_close(features[0][:, mask[0].bool()], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [16, 99, 100, 101, 3000])
def test_audio_tokens_are_counted_as_in_the_audio_tower(folder: Path, frames: int) -> None:
    mask = torch.ones(1, frames, dtype=torch.long)
    tokens = make_thinker(folder).model.get_audio_features(torch.randn(1, 128, frames), mask).last_hidden_state
    assert len(tokens) == count_audio_tokens(frames)


@pytest.mark.parametrize(("grids", "audio"), [(1, 4), (3, 130), (6, 130), (5, 30)])
def test_the_order_of_tokens_equals_the_processor_s(grids: int, audio: int) -> None:
    """The processor cannot be built without torchvision, but its method can be called on a stand-in."""
    stand_in = SimpleNamespace(
        audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>", audio_token="<|AUDIO|>",
        video_token="<|VIDEO|>", video_processor=SimpleNamespace(merge_size=2),
        get_chunked_index=lambda *args: Qwen2_5OmniProcessor.get_chunked_index(None, *args),
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
    assert placeholders(video_blocks(6, grids, 25.0, 50), audio, 50) == theirs


def test_a_clip_without_audio_has_features(folder: Path) -> None:
    thinker = make_thinker(folder)
    frames, _ = clip(2.0)
    ids = thinker.inputs(frames, 25, None)["input_ids"][0].tolist()
    assert 260 not in ids
    assert 263 not in ids
    assert torch.isfinite(thinker.compute_features(frames, 25, None)).all()


@pytest.mark.parametrize("rate", [16000, 24000])
def test_encode_leaves_frame_0_out_and_resamples_the_audio(folder: Path, rate: int) -> None:
    thinker = make_thinker(folder)
    frames, _ = clip(2.0)
    tone = torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000) * 0.5
    media = SimpleNamespace(
        frames=torch.cat([255 - frames[:1], frames[:25]]),
        waveform=torch.sin(torch.arange(rate) * 2 * torch.pi * 440 / rate) * 0.5,
        fps=25,
        sample_rate=rate,
    )
    expected = thinker.compute_features(frames[:25], 25, tone)
    features = thinker.encode(media)
    assert features.shape == expected.shape
    assert (features - expected).abs().mean() < (1e-6 if rate == 16000 else 0.02)
    media.waveform = torch.zeros(rate)
    assert torch.equal(thinker.encode(media), thinker.compute_features(frames[:25], 25, None))


def test_features_depend_on_audio_and_video_and_are_causal(folder: Path) -> None:
    thinker = make_thinker(folder)
    frames, waveform = clip(2.0)
    features = thinker.compute_features(frames, 25, waveform)
    louder, other = waveform.clone(), frames.clone()
    louder[-4000:] *= 3
    other[-13:] = 255 - other[-13:]
    for changed in (thinker.compute_features(frames, 25, louder), thinker.compute_features(other, 25, waveform)):
        difference = (changed - features).abs().amax(1)
        assert difference[-1] > 1e-4, "the position where the answer begins depends on the change"
        assert difference[0] == 0, "earlier positions do not: the model is causal"


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_an_earlier_layer_equals_that_of_the_whole_model(folder: Path, layer: int) -> None:
    frames, waveform = clip(1.0)
    whole, early = make_thinker(folder), make_thinker(folder, layer=layer)
    inputs = whole.inputs(frames, 25, waveform)
    expected = whole.model.model(**inputs, output_hidden_states=True).hidden_states[layer][0, -1]
    expected = expected / expected.square().mean().sqrt()
    torch.testing.assert_close(early.compute_features(frames, 25, waveform)[-1, :WIDTH], expected, atol=1e-3, rtol=0)
    assert len(early.model.model.language_model.layers) == layer


def test_the_thinker_of_a_complete_qwen_omni_is_loaded(folder: Path, tmp_path: Path) -> None:
    """As in the published repository, the configuration is nested and every tensor's name starts with `thinker.`."""
    shutil.copytree(folder, tmp_path / "whole")
    tensors = {f"thinker.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors | {"talker.x": torch.zeros(2)}, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    config = {"model_type": "qwen2_5_omni", "thinker_config": json.loads((folder / "config.json").read_text())}
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    frames, waveform = clip(1.0)
    alone, whole = make_thinker(folder), make_thinker(tmp_path / "whole")
    assert torch.equal(alone.compute_features(frames, 25, waveform), whole.compute_features(frames, 25, waveform))
    assert alone.fingerprint() == whole.fingerprint()


def test_half_precision_is_close(folder: Path) -> None:
    frames, waveform = clip(1.0)
    exact, half = (
        make_thinker(folder, dtype=kind).compute_features(frames, 25, waveform) for kind in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() < 0.05


def test_the_fingerprint_covers_weights_and_settings(folder: Path, tmp_path: Path) -> None:
    first = make_thinker(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "moved")
    assert make_thinker(tmp_path / "moved").fingerprint() == first
    changes: list[dict[str, Any]] = [{"layer": 2}, {"fps": 4.0}, {"system": "x"}, {"max_pixels": 9999}]
    others = [make_thinker(folder, **change) for change in changes]
    others.append(make_thinker(save_tiny_thinker(tmp_path / "other", seed=1)))
    assert len({first, *(other.fingerprint() for other in others)}) == 6


def test_an_unloaded_model_is_read_again(folder: Path) -> None:
    thinker = make_thinker(folder)
    frames, waveform = clip(1.0)
    before = thinker.compute_features(frames, 25, waveform)
    thinker.unload()
    assert "model" not in vars(thinker)
    assert torch.equal(thinker.compute_features(frames, 25, waveform), before)


def test_impossible_settings_and_damaged_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no configuration"):
        Thinker(str(tmp_path / "nowhere"))
    with pytest.raises(TokenizerError, match=r"layer=4 must be in 1 \.\. 3"):
        make_thinker(folder, layer=4)
    with pytest.raises(TokenizerError, match=r"fps=0\.5 must be 1 or more"):
        make_thinker(folder, fps=0.5)
    with pytest.raises(TokenizerError, match="at most 300 s"):
        make_thinker(folder).inputs(clip(1.0)[0], 25, torch.zeros(301 * 16000))
    shutil.copytree(folder, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(TokenizerError, match="holds no"):
        make_thinker(tmp_path / "empty").fingerprint()
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        make_thinker(tmp_path / "empty").compute_features(*clip(1.0)[:1], 25, None)
    with pytest.raises(TokenizerError, match="must be one of bfloat16"):
        make_thinker(folder, dtype="int8")
    shutil.copytree(folder, tmp_path / "incomplete")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1" not in k}, tmp_path / "incomplete" / "model.safetensors")
    with pytest.raises(TokenizerError, match="its weights lack"):
        make_thinker(tmp_path / "incomplete").compute_features(*clip(1.0)[:1], 25, None)
    shutil.copytree(folder, tmp_path / "no_tokenizer", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(TokenizerError, match="tokenizer"):
        make_thinker(tmp_path / "no_tokenizer").compute_features(*clip(1.0)[:1], 25, None)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="Qwen's processor needs torchvision")
def test_all_inputs_equal_the_processor_s(folder: Path) -> None:
    """Prompt, patches and audio."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor

    size = {"shortest_edge": SIZE["min_pixels"], "longest_edge": SIZE["max_pixels"]}
    processor = Qwen2_5OmniProcessor(
        Qwen2VLImageProcessorPil(),
        Qwen2VLVideoProcessor(),
        WhisperFeatureExtractor(feature_size=128, chunk_length=10),
        AutoTokenizer.from_pretrained(folder),
    )
    frames, waveform = clip(4.8)
    sampled = frames[[int(12.5 * i) for i in range(10)]]
    theirs = processor(
        text=chat("<|VIDEO|>", SYSTEM),
        videos=[sampled.numpy()],
        audio=[waveform.numpy()],
        audio_from_video_indices=[0],
        load_audio_from_video=True,
        videos_kwargs={"size": size},
        return_tensors="pt",
    )
    ours = make_thinker(folder).inputs(frames, 25, waveform)
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    assert float(ours["video_second_per_grid"][0]) == float(theirs["video_second_per_grid"][0])
    torch.testing.assert_close(ours["pixel_values_videos"], theirs["pixel_values_videos"], atol=1e-5, rtol=0)
    mel = [x["input_features"][0][:, x["feature_attention_mask"][0].bool()] for x in (ours, theirs)]
    torch.testing.assert_close(*mel, atol=1e-5, rtol=0)
