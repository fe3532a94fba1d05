"""A waveform that is pushed in pieces of any size gives the codes of the whole, delayed by the look-ahead only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tokenizers.test_pretrained_audio import small_encodec, small_mimi
from tests.tokenizers.test_stft_codec import small
from vidchat.tokenizers.audio import AudioCodec
from vidchat.tokenizers.weights import TokenizerError


@torch.no_grad()
def encodec() -> AudioCodec:
    codec = small_encodec()
    fit(codec.model.quantizer.layers, codec.model.encoder(speech(codec, 100)[:, None]))
    return codec


@torch.no_grad()
def mimi() -> AudioCodec:
    codec = small_mimi()
    latents, quantizer = codec.model.encoder(speech(codec, 100)[:, None]).latents, codec.model.quantizer
    for part in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
        fit(part.layers, part.input_proj(latents))
    return codec


def stft() -> AudioCodec:
    codec = small()
    codec.quantizer.initialize(codec.embed(speech(codec, 100)))
    return codec


def fit(levels: Any, vectors: Tensor) -> None:
    """Sets the codebooks to random vectors of (B, D, n) and of their residuals, so that codes vary."""
    for level in levels:
        flat, book = vectors.transpose(1, 2).flatten(0, 1), level.codebook
        entries = book.embed if hasattr(book, "inited") else book.embed_sum
        entries.copy_(flat[torch.randperm(len(flat))[: len(entries)]])
        if hasattr(book, "_embed"):
            book._embed = None  # the cache of Mimi
        vectors = vectors - level.decode(level.encode(vectors))


MAKERS: dict[str, Callable[[], AudioCodec]] = {"encodec": encodec, "mimi": mimi, "stft": stft}


@pytest.fixture(params=MAKERS)
def codec(request: pytest.FixtureRequest) -> AudioCodec:
    torch.manual_seed(0)
    return MAKERS[request.param]().eval()


def speech(codec: AudioCodec, count: int, batch: int = 2) -> Tensor:
    """A waveform of `count` codec frames whose loudness changes, so that codes vary."""
    loudness = torch.rand(batch, count, 1).repeat_interleave(codec.hop, 1).flatten(1)
    return torch.randn(batch, count * codec.hop) * loudness


def push_sizes(codec: AudioCodec, samples: int) -> dict[str, list[int]]:
    """Sizes of the pushes of `samples` samples: chunks, odd sizes, single codec frames, all at once."""
    odd = [codec.hop // 2 + 1, 1, 3 * codec.hop + 5]
    sizes = {"chunks": [12 * codec.hop], "odd sizes": odd, "codec frames": [codec.hop], "all at once": [samples]}
    pushes: dict[str, list[int]] = {}
    for name, repeated in sizes.items():
        pushes[name] = []
        while sum(pushes[name]) < samples:
            size = repeated[len(pushes[name]) % len(repeated)]
            pushes[name].append(min(size, samples - sum(pushes[name])))
    return pushes


def encode_in_pieces(codec: AudioCodec, waveform: Tensor, sizes: list[int]) -> Tensor:
    stream, other, codes = codec.encoder_stream(), codec.encoder_stream(), []
    for part in waveform.split(sizes, dim=1):
        codes.append(stream.push(part))
        other.push(torch.randn_like(part))  # a second stream must not interfere
    return torch.cat([*codes, stream.finish()], 1)


def test_pushes_give_the_codes_of_the_whole_waveform(codec: AudioCodec) -> None:
    waveform = speech(codec, 48)  # longer than Mimi's attention window of 10 at twice the rate
    whole = codec.encode(waveform)
    assert (codebook_use(whole) > 10).all()
    for name, sizes in push_sizes(codec, waveform.shape[1]).items():
        assert torch.equal(encode_in_pieces(codec, waveform, sizes), whole), name


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_short_waveforms_give_the_codes_of_the_whole_waveform(codec: AudioCodec, count: int) -> None:
    """Shorter than the reflection padding of EnCodec and than the look-ahead of the demo codec."""
    waveform = speech(codec, count)
    assert torch.equal(encode_in_pieces(codec, waveform, [1] * waveform.shape[1]), codec.encode(waveform))


def test_codes_are_returned_as_soon_as_they_are_known(codec: AudioCodec) -> None:
    """After each sample: the codes of all codec frames whose samples and look-ahead have arrived."""
    waveform, stream, returned = speech(codec, 12), codec.encoder_stream(), 0
    for samples, sample in enumerate(waveform.split(1, dim=1), 1):
        returned += stream.push(sample).shape[1]
        complete = max(samples - codec.look_ahead, 0) // codec.hop
        assert returned == (complete if complete >= codec.first_codec_frames else 0)


def test_codes_depend_on_no_sample_beyond_the_look_ahead(codec: AudioCodec) -> None:
    """Another continuation after n codec frames and the look-ahead does not change the codes of the n frames."""
    waveform, other = speech(codec, 24), 9 * speech(codec, 24)
    codes = codec.encode(waveform)

    def unchanged(samples: int) -> int:
        """Number of leading codec frames whose codes do not change if the waveform differs after `samples` samples."""
        mixed = codec.encode(torch.cat([waveform[:, :samples], other[:, samples:]], 1))
        same = (mixed == codes).all(-1).all(0).long()
        return int(same.cumprod(0).sum())

    for count in range(codec.first_codec_frames, 20):
        assert unchanged(count * codec.hop + codec.look_ahead) >= count
    # The attributes are not too large: with one codec frame less, the first or the last code changes.
    assert unchanged((codec.first_codec_frames - 1) * codec.hop + codec.look_ahead) == 0
    assert unchanged(11 * codec.hop + codec.look_ahead) == 11


def test_look_ahead_and_first_codec_frames_of_each_codec() -> None:
    assert (small_encodec().look_ahead, small_encodec().first_codec_frames) == (0, 7)
    assert (small_mimi().look_ahead, small_mimi().first_codec_frames) == (0, 1)
    assert (small().look_ahead, small().first_codec_frames) == (48, 1)


def test_leading_silence_removes_the_delay() -> None:
    """After `look_ahead` samples of silence, every push of n codec frames returns n codes at once."""
    codec = small().eval()
    waveform, stream = speech(codec, 24), codec.encoder_stream()
    assert stream.push(torch.zeros(2, codec.look_ahead)).shape[1] == 0
    parts = [stream.push(part) for part in waveform.split(8 * codec.hop, dim=1)]
    assert [part.shape[1] for part in parts] == [8, 8, 8]
    delayed = torch.cat([torch.zeros(2, codec.look_ahead), waveform], 1)
    assert torch.equal(torch.cat(parts, 1), codec.encode(delayed)[:, :24])


def test_the_memory_of_a_stream_does_not_grow(codec: AudioCodec) -> None:
    stream, sizes = codec.encoder_stream(), []
    for part in speech(codec, 96).split(12 * codec.hop, dim=1):
        stream.push(part)
        sizes.append(state_bytes(stream))
    assert sizes[3] == sizes[-1] > 0


@pytest.mark.parametrize("make", [encodec, mimi])
def test_a_stream_encodes_in_half_precision(make: Callable[[], AudioCodec]) -> None:
    torch.manual_seed(0)
    codec = make().to(torch.bfloat16)
    waveform = speech(codec, 12)
    assert torch.equal(encode_in_pieces(codec, waveform, [waveform.shape[1]]), codec.encode(waveform))


def test_misuse_is_refused_in_one_sentence(codec: AudioCodec) -> None:
    stream = codec.encoder_stream()
    with pytest.raises(TokenizerError, match="push a waveform first"):
        stream.finish()
    with pytest.raises(TokenizerError, match="batch, samples"):
        stream.push(torch.zeros(1, 1, codec.hop))
    stream.push(torch.zeros(1, codec.hop))
    assert stream.finish().shape[1] == 1 or codec.look_ahead == codec.first_codec_frames - 1 == 0
    with pytest.raises(TokenizerError, match="is finished"):
        stream.push(torch.zeros(1, codec.hop))
    with pytest.raises(TokenizerError, match="nothing to finish"):
        stream.finish()


def codebook_use(codes: Tensor) -> Tensor:
    """Number of different codes of each codebook, (K,)."""
    return torch.tensor([codes[..., book].unique().numel() for book in range(codes.shape[2])])


def state_bytes(stream: Any) -> int:
    """Bytes of a stream's state, including the storage behind views."""
    values = [stream._buffer, *(getattr(stream, "_past", None) or [])]
    if hasattr(stream, "_state"):
        state = stream._state
        values += [t for value in state._states.values() for t in (value if isinstance(value, tuple) else (value,))]
        if state.attention is not None:
            values += [tensor for layer in state.attention.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in values)
