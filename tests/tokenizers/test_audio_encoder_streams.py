"""A waveform that arrives in any cuts becomes the codes of the whole, as late as the codec looks ahead."""

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
    """Sets the codebooks to some of the vectors (B, D, n) and of what they leave over, so that codes vary."""
    for level in levels:
        flat, book = vectors.transpose(1, 2).flatten(0, 1), level.codebook
        entries = book.embed if hasattr(book, "inited") else book.embed_sum
        entries.copy_(flat[torch.randperm(len(flat))[: len(entries)]])
        if hasattr(book, "_embed"):
            book._embed = None  # Mimi's cache
        vectors = vectors - level.decode(level.encode(vectors))


MAKERS: dict[str, Callable[[], AudioCodec]] = {"encodec": encodec, "mimi": mimi, "stft": stft}


@pytest.fixture(params=MAKERS)
def codec(request: pytest.FixtureRequest) -> AudioCodec:
    torch.manual_seed(0)
    return MAKERS[request.param]().eval()


def speech(codec: AudioCodec, count: int, batch: int = 2) -> Tensor:
    """A waveform of `count` codec frames that is loud here and quiet there, so that codes vary."""
    loudness = torch.rand(batch, count, 1).repeat_interleave(codec.hop, 1).flatten(1)
    return torch.randn(batch, count * codec.hop) * loudness


def cuts(codec: AudioCodec, samples: int) -> dict[str, list[int]]:
    """Sizes of the pushes of `samples` samples: chunks of 12 codec frames, odd pieces, single codec frames, one."""
    odd = [codec.hop // 2 + 1, 1, 3 * codec.hop + 5]
    sizes = {"chunks": [12 * codec.hop], "odd pieces": odd, "codec frames": [codec.hop], "all at once": [samples]}
    pushes: dict[str, list[int]] = {}
    for name, repeated in sizes.items():
        pushes[name] = []
        while sum(pushes[name]) < samples:
            size = repeated[len(pushes[name]) % len(repeated)]
            pushes[name].append(min(size, samples - sum(pushes[name])))
    return pushes


def encoded_in(codec: AudioCodec, waveform: Tensor, sizes: list[int]) -> Tensor:
    stream, other, codes = codec.encoder_stream(), codec.encoder_stream(), []
    for part in waveform.split(sizes, dim=1):
        codes.append(stream.push(part))
        other.push(torch.randn_like(part))  # a second stream in between changes nothing
    return torch.cat([*codes, stream.finish()], 1)


def test_pushes_give_the_codes_of_the_whole(codec: AudioCodec) -> None:
    waveform = speech(codec, 48)  # longer than Mimi's attention window of 10 at twice the rate
    whole = codec.encode(waveform)
    assert (codebook_use(whole) > 10).all()
    for name, sizes in cuts(codec, waveform.shape[1]).items():
        assert torch.equal(encoded_in(codec, waveform, sizes), whole), name


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_short_waveforms_have_the_codes_of_the_whole(codec: AudioCodec, count: int) -> None:
    """Shorter than what EnCodec mirrors, and than what the demo's codec looks ahead."""
    waveform = speech(codec, count)
    assert torch.equal(encoded_in(codec, waveform, [1] * waveform.shape[1]), codec.encode(waveform))


def test_codes_come_as_soon_as_they_are_known(codec: AudioCodec) -> None:
    """After each sample there are the codes of all codec frames whose samples, and those ahead, have come."""
    waveform, stream, known = speech(codec, 12), codec.encoder_stream(), 0
    for samples, sample in enumerate(waveform.split(1, dim=1), 1):
        known += stream.push(sample).shape[1]
        due = max(samples - codec.look_ahead, 0) // codec.hop
        assert known == (due if due >= codec.first_codec_frames else 0)


def test_codes_depend_on_no_sample_beyond_what_the_codec_says(codec: AudioCodec) -> None:
    """Another continuation after n codec frames and the samples ahead leaves the codes of n frames as they are."""
    waveform, other = speech(codec, 24), 9 * speech(codec, 24)
    codes = codec.encode(waveform)

    def kept(samples: int) -> int:
        """Number of codec frames whose codes stay when the waveform continues otherwise after so many samples."""
        mixed = codec.encode(torch.cat([waveform[:, :samples], other[:, samples:]], 1))
        same = (mixed == codes).all(-1).all(0).long()
        return int(same.cumprod(0).sum())

    for count in range(codec.first_codec_frames, 20):
        assert kept(count * codec.hop + codec.look_ahead) >= count
    # The codec says no more than is true: a codec frame less, and the first code changes, or the last.
    assert kept((codec.first_codec_frames - 1) * codec.hop + codec.look_ahead) == 0
    assert kept(11 * codec.hop + codec.look_ahead) == 11


def test_encodec_waits_for_the_frames_that_it_mirrors_and_the_demo_for_its_window() -> None:
    assert (small_encodec().look_ahead, small_encodec().first_codec_frames) == (0, 7)
    assert (small_mimi().look_ahead, small_mimi().first_codec_frames) == (0, 1)
    assert (small().look_ahead, small().first_codec_frames) == (48, 1)


def test_silence_ahead_takes_the_delay_out_of_the_clock() -> None:
    """Behind `look_ahead` samples of silence every push of n codec frames gives n codes at once."""
    codec = small().eval()
    waveform, stream = speech(codec, 24), codec.encoder_stream()
    assert stream.push(torch.zeros(2, codec.look_ahead)).shape[1] == 0
    parts = [stream.push(part) for part in waveform.split(8 * codec.hop, dim=1)]
    assert [part.shape[1] for part in parts] == [8, 8, 8]
    later = torch.cat([torch.zeros(2, codec.look_ahead), waveform], 1)
    assert torch.equal(torch.cat(parts, 1), codec.encode(later)[:, :24])


def test_a_stream_does_not_keep_the_waveform(codec: AudioCodec) -> None:
    stream, kept = codec.encoder_stream(), []
    for part in speech(codec, 96).split(12 * codec.hop, dim=1):
        stream.push(part)
        kept.append(held(stream))
    assert kept[3] == kept[-1] > 0


@pytest.mark.parametrize("make", [encodec, mimi])
def test_half_precision_is_encoded_too(make: Callable[[], AudioCodec]) -> None:
    torch.manual_seed(0)
    codec = make().to(torch.bfloat16)
    waveform = speech(codec, 12)
    assert torch.equal(encoded_in(codec, waveform, [waveform.shape[1]]), codec.encode(waveform))


def test_misuse_is_refused_in_a_sentence(codec: AudioCodec) -> None:
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
    """(K,), the number of different codes."""
    return torch.tensor([codes[..., book].unique().numel() for book in range(codes.shape[2])])


def held(stream: Any) -> int:
    """Bytes that a stream keeps beside the weights, those behind views included."""
    values = [stream._waiting, *(getattr(stream, "_past", None) or [])]
    if hasattr(stream, "_memory"):
        values += [t for kept in stream._memory._kept.values() for t in (kept if isinstance(kept, tuple) else (kept,))]
        if stream._memory.attention is not None:
            values += [tensor for layer in stream._memory.attention.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in values)
