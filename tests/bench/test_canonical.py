"""The loading code of published weights, and its outputs, on small random models of the same architecture."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vidchat.bench.canonical.arcface import TEMPLATE, ArcFace, aligned, similarity
from vidchat.bench.canonical.coherence import NearestByClip, NearestBySentence, Transcriber
from vidchat.bench.canonical.expression import ExpressionCoefficients
from vidchat.bench.canonical.i3d import I3d
from vidchat.bench.canonical.inception import Inception
from vidchat.bench.canonical.mfcc import mfcc
from vidchat.bench.canonical.syncnet import (
    MAX_LAG,
    Network,
    SyncNet,
    confidences,
    face_track,
    lag_distances,
    load_syncnet,
)  # fmt: skip
from vidchat.bench.canonical.voice import INSIDE, WavLmEcapa
from vidchat.bench.clips import View, black
from vidchat.bench.faces import CentredFace, Faces, detection_frames
from vidchat.bench.metric import BackendError
from vidchat.bench.pairs import Candidate
from vidchat.bench.suite import Backends
from vidchat.data.media.read import Media


def media(frames=30, side=40):
    torch.manual_seed(1)
    video = torch.randint(0, 256, (frames, 3, side, side), dtype=torch.uint8)
    return Media(video, 0.1 * torch.randn(frames * 640), 25, 16000)


class FakeInception(nn.Module):
    """Called as StyleGAN's file is: `layers` on [-1, 1] frames of 299."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, 4), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.layers(x)


class FakeI3d(nn.Module):
    """Called as StyleGAN-V's file is."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 400, 3, 8, 1)

    def forward(self, x, rescale: bool, resize: bool, return_features: bool):
        if not (rescale and resize and return_features):
            raise ValueError("the convention is all three")
        return self.conv(x / 127.5 - 1).mean([2, 3, 4])


def test_fid_and_fvd_load_torchscript_and_feed_it_by_the_convention(tmp_path):
    inception, i3d = FakeInception(), FakeI3d()
    torch.jit.script(inception).save(str(tmp_path / "inception.pt"))
    torch.jit.script(i3d).save(str(tmp_path / "i3d.pt"))
    flat = black(30, View((32, 48)))
    rows = Inception(tmp_path / "inception.pt").read(flat)["rows"]
    expected = inception.layers(torch.full((1, 3, 299, 299), -1.0)).flatten()
    assert rows == pytest.approx(expected.detach().numpy()[None].repeat(8, 0), rel=1e-5)
    clip = media()
    at = torch.linspace(0, 29, 16).round().long()
    expected = i3d(clip.frames[at].transpose(0, 1)[None].float(), True, True, True)
    assert I3d(tmp_path / "i3d.pt").read(clip)["rows"] == pytest.approx(expected.detach().numpy(), rel=1e-5)
    torch.jit.script(i3d).save(str(tmp_path / "wrong.pt"))
    with pytest.raises(BackendError, match="layers"):
        Inception(tmp_path / "wrong.pt")
    with pytest.raises(BackendError, match=r"inception-2015-12-05\.pt"):
        Inception(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="10 frames"):
        I3d(tmp_path / "i3d.pt", frames=4)


def onnx_model(path, inputs, outputs, nodes, constants):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "graph",
        [value(*given) for given in inputs],
        [value(*out) for out in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))


@pytest.fixture
def arcface(tmp_path):
    """Returns an ArcFace whose detector finds one face at fixed landmarks, and embeds its mean colour linearly."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    constants, nodes = {"zero": np.zeros((), np.float32)}, [("ReduceMean", ["x"], ["mean"])]
    nodes.append(("Mul", ["mean", "zero"], ["nothing"]))
    landmarks = np.array([[30, 40], [50, 40], [40, 52], [33, 62], [47, 62]], np.float32) * 8  # of 640 / 80
    outputs = []
    for kind, width in enumerate((1, 4, 10)):
        for level, stride in enumerate((8, 16, 32)):
            cells = (640 // stride) ** 2 * 2
            table = np.zeros((cells, width), np.float32)
            if level == 1 and kind == 0:
                table[2 * 41 + 1] = 0.9  # column 1, row 1, second anchor
            if level == 1 and kind == 2:
                table[2 * 41 + 1] = ((landmarks - 16) / 16).reshape(-1)
            name = f"o{kind}{level}"
            constants[f"c{name}"] = table
            nodes.append(("Add", [f"c{name}", "nothing"], [name]))
            outputs.append((name, [cells, width]))
    onnx_model(tmp_path / "scrfd.onnx", [("x", [1, 3, 640, 640])], outputs, nodes, constants)
    weights = np.random.default_rng(0).normal(size=(3, 512)).astype(np.float32)
    nodes = [("GlobalAveragePool", ["x"], ["p"]), ("Flatten", ["p"], ["f"]), ("MatMul", ["f", "w"], ["e"])]
    onnx_model(tmp_path / "arc.onnx", [("x", ["n", 3, 112, 112])], [("e", ["n", 512])], nodes, {"w": weights})
    return ArcFace(tmp_path / "arc.onnx", tmp_path / "scrfd.onnx"), landmarks / 8, weights


def test_arcface_aligns_by_landmarks_and_embeds(arcface):
    metric, landmarks, weights = arcface
    clip = media(6, side=80)
    assert metric.detector.landmarks(clip.frames[0]) == pytest.approx(landmarks, abs=1e-3)
    features = metric.read(clip)
    first = int(detection_frames(6)[0])
    face = (aligned(clip.frames[first], landmarks) - 127.5) / 127.5
    assert features["faces"][0] == pytest.approx(face.mean((1, 2)).numpy() @ weights, abs=1e-4)
    assert features["found"].tolist() == [True, True]
    reference = metric.read(Media(clip.frames[:1], torch.zeros(640), 25, 16000))
    values = metric.compare(features, features, reference, None)
    assert values["face found"] == 1
    assert values["identity drift"] == 0
    assert values["ArcFace"] <= 1 + 1e-9


def test_alignment_finds_the_turn_the_scale_and_the_shift():
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = 1.7 * TEMPLATE @ turn.T + np.array([5, -3])
    found = similarity(TEMPLATE, moved)
    assert found == pytest.approx(np.column_stack([1.7 * turn, [5, -3]]))
    frame = torch.zeros(3, 300, 300, dtype=torch.uint8)
    where = np.round(moved[2] + 60).astype(int)
    frame[:, where[1] - 2 : where[1] + 3, where[0] - 2 : where[0] + 3] = 255
    face = aligned(frame, moved + 60)[0]
    at = np.unravel_index(int(face.argmax()), face.shape)
    assert at == pytest.approx((TEMPLATE[2, 1], TEMPLATE[2, 0]), abs=2)


def test_dnsmos_falls_with_noise(real_clips):
    from vidchat.bench.canonical.dnsmos import Dnsmos
    from vidchat.data.media.read import read_clip
    from vidchat.dialogue import Clip

    pytest.importorskip("onnxruntime")
    metric = Dnsmos(real_clips.parents[1] / "weights" / "dnsmos_sig_bak_ovr.onnx")
    clip = read_clip(Clip(real_clips / "man_suit.mp4", ""), fps=25, size=(16, 16), sample_rate=16000)
    noisy = replace(clip, waveform=clip.waveform + 0.03 * torch.randn_like(clip.waveform))
    silent = replace(clip, waveform=torch.zeros_like(clip.waveform))
    scores = [metric.compare(metric.read(one), {}, {}, None)["DNSMOS OVR"] for one in (clip, noisy, silent)]
    assert scores[0] > 2.5
    assert scores[0] > scores[1] > scores[2] == 1


# SyncNet


def test_mfcc_equals_its_definition_written_out():
    rng = np.random.default_rng(0)
    samples = np.round(3000 * rng.normal(size=2000))
    result = mfcc(samples)
    emphasised = np.concatenate([samples[:1], samples[1:] - 0.97 * samples[:-1]])
    frame = emphasised[320 : 320 + 400]
    power = np.array([abs(sum(frame * np.exp(-2j * np.pi * k * np.arange(400) / 512))) ** 2 / 512 for k in range(257)])
    corners = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 28)]
    bins = [int(513 * hertz / 16000) for hertz in corners]
    log = []
    for j in range(26):
        low, top, high = bins[j : j + 3]
        up = sum(power[k] * (k - low) / (top - low) for k in range(low, top))
        down = sum(power[k] * (high - k) / (high - top) for k in range(top, high))
        log.append(np.log(up + down))
    expected = [
        np.sqrt(2 / 26)
        * sum(log[j] * np.cos(np.pi * n * (j + 0.5) / 26) for j in range(26))
        * (1 + 11 * np.sin(np.pi * n / 22))
        for n in range(1, 13)
    ]
    assert result.shape == (11, 13)
    assert result[2, 1:] == pytest.approx(expected, rel=1e-9)
    assert result[2, 0] == pytest.approx(np.log(power.sum()))


def test_the_network_has_the_published_shapes_and_loads_a_state_dict(tmp_path):
    net = Network().eval()
    torch.save(net.state_dict(), tmp_path / "syncnet_v2.model")
    loaded = load_syncnet(tmp_path / "syncnet_v2.model")
    with torch.no_grad():
        assert loaded.embed_mouth(torch.zeros(1, 3, 5, 224, 224)).shape == (1, 1024)
        audio = torch.randn(2, 1, 13, 20)
        assert torch.equal(loaded.embed_audio(audio), net.embed_audio(audio))
    names = set(net.state_dict())
    assert {"netcnnlip.0.weight", "netcnnlip.19.running_var", "netcnnaud.18.bias", "netfclip.3.weight"} <= names
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.model")
    with pytest.raises(BackendError, match=r"syncnet_v2\.model"):
        load_syncnet(tmp_path / "other.model")


@pytest.mark.parametrize("late", [0, 3, -4])
def test_the_offset_is_where_the_features_agree(late):
    """Audio embeddings are `late` windows later than those of mouths; SyncNet calls this an offset of `-late`."""
    features = torch.nn.functional.normalize(torch.randn(60, 16), dim=1)
    distances = lag_distances(features, features.roll(late, 0))
    values = confidences(distances.numpy())
    assert int(distances.argmin()) - MAX_LAG == late
    assert values["offset"] == abs(late)
    assert values["Sync-C"] > 0.8
    assert (values["Sync-C0"] > 0.8) == (late == 0)


def test_lag_distances_equal_a_loop():
    mouths, sounds = torch.randn(8, 4), torch.randn(8, 4)
    result = lag_distances(mouths, sounds)
    for lag in (0, MAX_LAG, MAX_LAG + 2, 2 * MAX_LAG):
        expected = 0.0
        for i in range(8):
            j = i + lag - MAX_LAG
            other = sounds[j] if 0 <= j < 8 else torch.zeros(4)
            expected += float((mouths[i] - other + 1e-6).norm()) / 8
        assert float(result[lag]) == pytest.approx(expected, rel=1e-5)


def test_syncnet_reads_a_short_clip_whole_and_a_tiny_one_without_failing(tmp_path):
    torch.save(Network().state_dict(), tmp_path / "syncnet_v2.model")
    metric = SyncNet(tmp_path / "syncnet_v2.model", CentredFace())
    distances = metric.read(media(8))["distances"]
    assert distances.shape == (2 * MAX_LAG + 1,)
    assert np.isfinite(distances).all()
    assert np.isnan(confidences(metric.read(media(3))["distances"])["Sync-C"])


def test_the_face_is_cropped_lower_than_its_middle_and_followed():
    frames = torch.zeros(20, 3, 200, 200, dtype=torch.uint8)
    boxes = np.array([[60 + i, 60, 100 + i, 100] for i in range(20)], float)
    for i in range(20):
        frames[i, :, 78:82, 78 + i : 82 + i] = 255
    track = face_track(frames, Faces(boxes, np.ones(20, bool)))
    assert track.shape == (20, 3, 224, 224)
    at = np.argwhere(track[10, 0].numpy() > 200).mean(0)
    assert at == pytest.approx((224 * 20 / (20 * 2.8), 112), abs=3)
    corner = face_track(frames[:3], Faces(np.tile([0.0, 0, 40, 40], (3, 1)), np.ones(3, bool)))
    assert int(corner[0, 0, 0, 0]) == 110, "outside the frame it is grey"


# Language and voice, by transformers


def write_words(folder, words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


class Says:
    """A transcriber that knows what is said."""

    def __init__(self, text):
        self.text = text

    def spec(self):
        return {"asr": "known"}

    def __call__(self, clip):
        return self.text


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A random CLIP text model with a byte-level vocabulary without merges."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: number for number, word in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    torch.manual_seed(0)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


REPLIES = (Candidate("yes i love tea", 1.0), Candidate("what a day", 0.6), Candidate("no never", 0.2))


def test_the_nearest_candidate_by_clip_and_silence_scores_0(clip_folder, pairs):
    pair = replace(pairs[0], candidates=REPLIES)
    for said, score in (("no never", 0.2), ("yes i love tea", 1.0), ("", 0.0)):
        metric = NearestByClip(Says(said), str(clip_folder))
        assert metric.compare(metric.read(media()), {}, {}, pair) == {"coherence": score}
    vectors = metric.embed(["no never", "yes " * 200])
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1], rel=1e-5)
    assert np.isnan(metric.compare(metric.read(media()), {}, {}, replace(pair, candidates=()))["coherence"])


def test_the_nearest_candidate_by_sentence_does_not_depend_on_padding(tmp_path, pairs):
    from transformers import BertConfig, BertModel

    write_words(tmp_path, ["yes", "i", "love", "tea", "what", "a", "day", "no", "never"])
    config = BertConfig(
        vocab_size=12, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, pad_token_id=0
    )
    BertModel(config).save_pretrained(tmp_path)
    metric = NearestBySentence(Says("no never"), str(tmp_path))
    alone, padded = metric.embed(["no never"])[0], metric.embed(["no never", "yes i love tea"])[0]
    assert torch.allclose(alone, padded, atol=1e-5)
    pair = replace(pairs[0], candidates=REPLIES)
    assert metric.compare(metric.read(media()), {}, {}, pair) == {"coherence, sentence": 0.2}


def test_whisper_loads_transcribes_and_returns_nothing_for_silence(tmp_path):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

    words = {chr(byte): number for number, byte in enumerate([*range(33, 127)])}
    words |= {"Ġ": len(words), "<|endoftext|>": len(words) + 1, "<|startoftranscript|>": len(words) + 2}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    WhisperTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=16, chunk_length=4).save_pretrained(tmp_path)
    config = WhisperConfig(
        vocab_size=len(words), num_mel_bins=16, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_source_positions=200, max_target_positions=230, bos_token_id=95, eos_token_id=95, pad_token_id=95,
        decoder_start_token_id=96, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=95, eos_token_id=95, pad_token_id=95, decoder_start_token_id=96)
    model.save_pretrained(tmp_path)
    transcriber = Transcriber(str(tmp_path))
    clip = media()
    said = transcriber(clip)
    assert said == Transcriber(str(tmp_path))(clip), "greedy, so it is deterministic"
    assert transcriber(replace(clip, waveform=torch.zeros(19200))) == ""
    with pytest.raises(BackendError, match="nowhere"):
        Transcriber(str(tmp_path / "nowhere"))


def published(config):
    """A random checkpoint with UniSpeech's names, and the WavLM of transformers that it holds."""
    from transformers import WavLMModel

    from vidchat.bench.canonical.ecapa import Ecapa

    model = WavLMModel(config).eval()
    back = {
        "feature_projection.layer_norm.": "layer_norm.", "feature_projection.projection.": "post_extract_proj.",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
        "encoder.pos_conv_embed.conv.": "encoder.pos_conv.0.", "masked_spec_embed": "mask_emb",
        ".attention.gru_rel_pos_linear.": ".self_attn.grep_linear.",
        ".attention.gru_rel_pos_const": ".self_attn.grep_a",
        ".attention.rel_attn_embed.": ".self_attn.relative_attention_bias.", ".attention.": ".self_attn.",
        ".feed_forward.intermediate_dense.": ".fc1.", ".feed_forward.output_dense.": ".fc2.",
    }  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in back.items():
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] == "feature_extractor":
            name = ".".join([*parts[:3], *{"conv": ["0"], "layer_norm": ["2", "1"]}[parts[3]], parts[4]])
        elif parts[:2] == ["encoder", "layers"] and parts[3] == "layer_norm":
            name = ".".join([*parts[:3], "self_attn_layer_norm", parts[4]])
        state[INSIDE + name] = value
    head = Ecapa(config.num_hidden_layers + 1, config.hidden_size).eval()
    nn.init.normal_(head.feature_weight)
    return model, head, {**state, **head.state_dict(), "loss_calculator.projection.weight": torch.zeros(2, 2)}


def test_sim_o_loads_the_published_names_and_gives_the_same_embedding(tmp_path):
    from transformers import WavLMConfig

    config = WavLMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=False, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, num_buckets=32, max_bucket_distance=64,
    )  # fmt: skip
    torch.manual_seed(3)
    model, head, state = published(config)
    torch.save({"model": state}, tmp_path / "wavlm_large_finetune.pth")
    metric = WavLmEcapa(tmp_path / "wavlm_large_finetune.pth", config=config)
    clip = media()
    with torch.no_grad():
        normal = F.layer_norm(clip.waveform, clip.waveform.shape)[None]
        states = model(normal, output_hidden_states=True).hidden_states
        expected = head(torch.stack(states, 1))[0]
    features = metric.read(clip)
    assert features["voice"] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-5)
    assert metric.compare(features, features, {}, None)["SIM-o"] == pytest.approx(1)
    silent = metric.read(replace(clip, waveform=torch.zeros(19200)))
    assert np.isnan(metric.compare(silent, features, {}, None)["SIM-o"])
    del state[INSIDE + "encoder.layers.1.fc1.weight"]
    torch.save({"model": state}, tmp_path / "broken.pth")
    with pytest.raises(BackendError, match="intermediate_dense"):
        WavLmEcapa(tmp_path / "broken.pth", config=config)


def test_a_speaker_model_of_transformers(tmp_path):
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    from vidchat.bench.canonical.voice import XVector

    config = WavLMConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, tdnn_dim=(16,) * 5, xvector_output_dim=24,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    metric = XVector(str(tmp_path))
    features = metric.read(media())
    assert features["voice"].shape == (24,)
    assert metric.compare(features, features, {}, None) == {"SIM, x-vector": pytest.approx(1)}


# What the user plugs in, and what needs what


def test_expression_coefficients_come_from_the_users_own_function(monkeypatch):
    module = types.ModuleType("my_faces")

    def coefficients(frames):
        assert frames.dtype == np.uint8
        return frames.reshape(len(frames), -1)[:, :64] / 255

    coefficients.protocol = "mean of nothing, weights 0"
    module.coefficients = coefficients
    module.unnamed = lambda frames: frames
    monkeypatch.setitem(sys.modules, "my_faces", module)
    metric = ExpressionCoefficients("my_faces:coefficients")
    assert metric.read(media())["rows"].shape == (15, 64)
    assert metric.spec()["backend"] == "mean of nothing, weights 0"
    for wrong in ("my_faces:none", "no_such_module:f", "nonsense", "my_faces:unnamed"):
        with pytest.raises(BackendError):
            ExpressionCoefficients(wrong)


def test_without_weights_all_metrics_are_proxies_and_half_a_backend_is_refused(tmp_path):
    metrics = Backends()()
    assert {m.dimension for m in metrics} == {
        "video quality", "identity", "dialogue coherence", "audio-visual sync", "emotion", "voice", "responsiveness",
        "listening",
    }  # fmt: skip
    assert [type(m).__name__ for m in metrics if not m.proxy] == [
        "Fidelity", "SharpnessDrift", "LoudnessDrift", "Listening",
    ]  # fmt: skip
    for given in ({"arcface": tmp_path}, {"clip": "x"}, {"whisper": "x"}, {"sentence": "x"}):
        with pytest.raises(BackendError):
            Backends(**given)()
