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
        level.codebook.embed.normal_()  # as built they are zeros, and every test would pass
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


def some_codes(codec: PretrainedCodec, codec_frames: int) -> torch.Tensor:
    return torch.randint(0, codec.vocabulary, (2, codec_frames, codec.codebooks))


def test_lengths_are_exact(codec: PretrainedCodec) -> None:
    waveform = torch.randn(2, 9 * codec.hop)
    codes = codec.encode(waveform)
    assert codes.shape == (2, 9, 4)
    assert codes.dtype == torch.int64
    assert codes.unique().numel() > 5  # not the constant of an empty codebook
    assert codec.decode(codes).shape == waveform.shape


def test_the_stream_equals_the_whole(codec: PretrainedCodec) -> None:
    codes = some_codes(codec, 47)
    whole = codec.decode(codes)
    stream = codec.stream()
    # Longer in all than Mimi's attention window of 10 at twice the frame rate.
    pieces = [stream.push(part) for part in codes.split([12, 1, 1, 2, 12, 12, 7], dim=1)]
    assert [piece.shape[1] // codec.hop for piece in pieces] == [12, 1, 1, 2, 12, 12, 7]
    assert whole.std() > 1e-3
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_the_stream_equals_the_whole_however_it_is_cut(codec: PretrainedCodec, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [7 + int(torch.randint(9, (), generator=generator))]  # EnCodec's first push
    while sum(sizes) < 40:
        sizes.append(1 + int(torch.randint(6, (), generator=generator)))
    codes = some_codes(codec, sum(sizes))
    whole, stream = codec.decode(codes), codec.stream()
    pieces = torch.cat([stream.push(part) for part in codes.split(sizes, dim=1)], 1)
    assert torch.allclose(pieces, whole, atol=1e-5 * float(whole.abs().max()))


def test_a_stream_does_not_keep_the_answer(codec: PretrainedCodec) -> None:
    stream, kept = codec.stream(), []
    for part in some_codes(codec, 96).split(12, dim=1):
        stream.push(part)
        memory = stream._memory
        tensors = [t for value in memory._kept.values() for t in (value if isinstance(value, tuple) else (value,))]
        if memory.attention is not None:
            tensors += [layer.keys for layer in memory.attention.layers]
        kept.append(sum(tensor.numel() for tensor in tensors))
    assert kept[3] == kept[-1] > 0


def test_half_precision_in_single_precision_out(codec: PretrainedCodec) -> None:
    codes = some_codes(codec, 8)
    exact = codec.decode(codes)
    codec.to(torch.bfloat16)  # after it was used: nothing of the old type may be left
    heard = codec.decode(codes)
    assert heard.dtype == codec.stream().push(codes).dtype == torch.float32
    assert (heard - exact).abs().mean() < 0.2 * exact.abs().mean()
    assert codec.encode(exact).shape == codes.shape
    assert codec.to(torch.float32).decode(codes).dtype == torch.float32


def test_decoding_uses_the_past_and_not_the_future(codec: PretrainedCodec) -> None:
    codes = some_codes(codec, 20)
    changed = codes.clone()
    changed[:, 12] = (changed[:, 12] + 1) % codec.vocabulary
    difference = (codec.decode(codes) - codec.decode(changed)).abs().amax(0)
    assert difference[: 12 * codec.hop].max() < 1e-6 * difference.max()
    assert difference[13 * codec.hop :].max() > 0


def test_encodec_says_that_its_first_push_was_too_short() -> None:
    codec = small_encodec()
    codes = some_codes(codec, 6)
    stream = codec.stream()
    stream.push(codes[:, :3])
    with pytest.raises(TokenizerError, match="at least 7 frames"):
        stream.push(codes[:, 3:])
    assert torch.allclose(codec.stream().push(codes), codec.decode(codes), atol=1e-6)


def test_encodec_codes_are_transformers_own() -> None:
    codec = small_encodec()
    waveform = torch.randn(1, 40 * codec.hop)
    theirs = codec.model.encode(waveform[:, None], bandwidth=60.0).audio_codes[0]
    assert torch.equal(codec.encode(waveform), theirs[:, : codec.codebooks].transpose(1, 2))


def test_saved_and_loaded_is_the_same(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.save(tmp_path)
    again = type(codec).load(tmp_path)
    codes = some_codes(codec, 8)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    assert again.fingerprint() == codec.fingerprint()
    other = type(codec)(codec.model, codebooks=3)
    assert other.fingerprint() != codec.fingerprint()


def test_a_folder_in_the_format_of_transformers_loads(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.model.save_pretrained(tmp_path)
    again = type(codec).from_pretrained(tmp_path, codebooks=4)
    codes = some_codes(codec, 8)
    assert torch.equal(again.decode(codes), codec.decode(codes))


def test_errors_name_the_cure(codec: PretrainedCodec, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="codebooks=99 is impossible"):
        type(codec)(codec.model, codebooks=99)
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        type(codec).from_pretrained(tmp_path / "nowhere", codebooks=2)


def test_weights_that_are_pickled_are_not_read(codec: PretrainedCodec, tmp_path: Path) -> None:
    codec.model.save_pretrained(tmp_path)
    torch.save(codec.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TokenizerError, match="cannot be loaded"):
        type(codec).from_pretrained(tmp_path, codebooks=2)
    with pytest.raises(TokenizerError, match="samples"):
        codec.encode(torch.randn(1, codec.hop + 1))
