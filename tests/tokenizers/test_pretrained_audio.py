from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import EncodecConfig, EncodecModel, MimiConfig, MimiModel

from vidchat.tokenizers.pretrained_audio import EncodecCodec, MimiCodec, PretrainedCodec
from vidchat.tokenizers.weights import TokenizerError


def small_encodec() -> EncodecCodec:
    config = EncodecConfig(
        num_filters=4, upsampling_ratios=(4, 2), hidden_size=16, codebook_size=32, target_bandwidths=[60.0]
    )
    model = EncodecModel(config)
    for level in model.quantizer.layers:
        level.codebook.embed.normal_()  # a new model has zeros, with which every test would pass
    return EncodecCodec(model, codebooks=4).eval()


def small_mimi() -> MimiCodec:
    config = MimiConfig(
        num_filters=4, upsampling_ratios=[4, 2], hidden_size=16, codebook_size=32, codebook_dim=8,
        vector_quantization_hidden_dimension=8, num_quantizers=6, num_hidden_layers=2, intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=2, head_dim=8, sliding_window=10, upsample_groups=16,
        sampling_rate=24000, frame_rate=1500.0, layer_scale_initial_scale=1.0,
    )  # fmt: skip
    model = MimiModel(config)
    for level in [
        *model.quantizer.semantic_residual_vector_quantizer.layers,
        *model.quantizer.acoustic_residual_vector_quantizer.layers,
    ]:
        level.codebook.embed_sum.normal_()
        level.codebook.cluster_usage.fill_(1)
        level.codebook._embed = None
    return MimiCodec(model, codebooks=4).eval()


@pytest.fixture(params=[small_encodec, small_mimi], ids=["encodec", "mimi"])
def codec(request: pytest.FixtureRequest) -> PretrainedCodec:
    return request.param()


def random_codes(codec: PretrainedCodec, codec_frames: int) -> torch.Tensor:
    return torch.randint(0, codec.vocabulary, (2, codec_frames, codec.codebooks))


def test_lengths_are_exact(codec: PretrainedCodec) -> None:
    waveform = torch.randn(2, 9 * codec.hop)
    codes = codec.encode(waveform)
    assert codes.shape == (2, 9, 4)
    assert codes.dtype == torch.int64
    assert codes.unique().numel() > 5  # an empty codebook would give one code
    assert codec.decode(codes).shape == waveform.shape


def test_a_stream_equals_decoding_all_codes(codec: PretrainedCodec) -> None:
    codes = random_codes(codec, 47)
    whole = codec.decode(codes)
    stream = codec.stream()
    # Longer than Mimi's attention window of 10 positions at twice the codec frame rate.
    pieces = [stream.push(part) for part in codes.split([12, 1, 1, 2, 12, 12, 7], dim=1)]
    assert [piece.shape[1] // codec.hop for piece in pieces] == [12, 1, 1, 2, 12, 12, 7]
    assert whole.std() > 1e-3
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_equals_decoding_all_codes_for_any_push_sizes(codec: PretrainedCodec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [7 + int(torch.randint(9, (), generator=generator))]  # EnCodec's first push
    while sum(sizes) < 40:
        sizes.append(1 + int(torch.randint(6, (), generator=generator)))
    codes = random_codes(codec, sum(sizes))
    whole, stream = codec.decode(codes), codec.stream()
    pieces = torch.cat([stream.push(part) for part in codes.split(sizes, dim=1)], 1)
    assert torch.allclose(pieces, whole, atol=1e-5 * float(whole.abs().max()))


def test_the_memory_of_a_stream_does_not_grow(codec: PretrainedCodec) -> None:
    stream, sizes = codec.stream(), []
    for part in random_codes(codec, 96).split(12, dim=1):
        stream.push(part)
        state = stream._state
        tensors = [t for value in state._states.values() for t in (value if isinstance(value, tuple) else (value,))]
        if state.attention is not None:
            tensors += [layer.keys for layer in state.attention.layers]
        sizes.append(sum(tensor.numel() for tensor in tensors))
    assert sizes[3] == sizes[-1] > 0


def test_a_codec_in_half_precision_returns_single_precision(codec: PretrainedCodec) -> None:
    codes = random_codes(codec, 8)
    exact = codec.decode(codes)
    codec.to(torch.bfloat16)  # after its first use: no cached tensor may keep the old type
    waveform = codec.decode(codes)
    assert waveform.dtype == codec.stream().push(codes).dtype == torch.float32
    assert (waveform - exact).abs().mean() < 0.2 * exact.abs().mean()
    assert codec.encode(exact).shape == codes.shape
    assert codec.to(torch.float32).decode(codes).dtype == torch.float32


def test_decoding_depends_on_the_past_and_not_on_the_future(codec: PretrainedCodec) -> None:
    codes = random_codes(codec, 20)
    changed = codes.clone()
    changed[:, 12] = (changed[:, 12] + 1) % codec.vocabulary
    difference = (codec.decode(codes) - codec.decode(changed)).abs().amax(0)
    assert difference[: 12 * codec.hop].max() < 1e-6 * difference.max()
    assert difference[13 * codec.hop :].max() > 0


def test_encodec_refuses_a_second_push_after_a_first_that_was_too_short() -> None:
    codec = small_encodec()
    codes = random_codes(codec, 6)
    stream = codec.stream()
    stream.push(codes[:, :3])
    with pytest.raises(TokenizerError, match="at least 7 frames"):
        stream.push(codes[:, 3:])
    assert torch.allclose(codec.stream().push(codes), codec.decode(codes), atol=1e-6)


def test_encodec_codes_equal_those_of_transformers() -> None:
    codec = small_encodec()
    waveform = torch.randn(1, 40 * codec.hop)
    theirs = codec.model.encode(waveform[:, None], bandwidth=60.0).audio_codes[0]
    assert torch.equal(codec.encode(waveform), theirs[:, : codec.codebooks].transpose(1, 2))


def test_a_codec_saves_and_loads(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    again = type(codec).load(tmp_path)
    codes = random_codes(codec, 8)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    assert again.fingerprint() == codec.fingerprint()
    other = type(codec)(codec.model, codebooks=3)
    assert other.fingerprint() != codec.fingerprint()


def test_a_folder_in_the_format_of_transformers_loads(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.model.save_pretrained(tmp_path)
    again = type(codec).from_pretrained(tmp_path, codebooks=4)
    codes = random_codes(codec, 8)
    assert torch.equal(again.decode(codes), codec.decode(codes))


def test_impossible_settings_and_missing_files_are_refused(codec: PretrainedCodec, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"codebooks=99 must be in 1 \.\. "):
        type(codec)(codec.model, codebooks=99)
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        type(codec).from_pretrained(tmp_path / "nowhere", codebooks=2)


def test_pickled_weights_are_refused(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.model.save_pretrained(tmp_path)
    torch.save(codec.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        type(codec).from_pretrained(tmp_path, codebooks=2)
    with pytest.raises(TokenizerError, match="samples"):
        codec.encode(torch.randn(1, codec.hop + 1))
