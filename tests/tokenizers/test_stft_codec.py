from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidchat.tokenizers.stft_codec import Spectrum, StftCodec
from vidchat.tokenizers.weights import TokenizerError, round_weights

HOP, WINDOW = 16, 64


def small(**changes: int) -> StftCodec:
    sizes = {"width": 16, "code_width": 8, "vocabulary": 32, "encoder_blocks": 2, "decoder_blocks": 2, "kernel": 3}
    return StftCodec(**{"sample_rate": 800, "hop": HOP, "window": WINDOW, "codebooks": 3, **sizes, **changes})


@pytest.fixture
def codec() -> StftCodec:
    return small().eval()


def random_codes(codec: StftCodec, codec_frames: int) -> torch.Tensor:
    return torch.randint(0, codec.vocabulary, (2, codec_frames, codec.codebooks))


@pytest.mark.parametrize("codec_frames", [1, 2, 3, 7, 50])
def test_n_hops_are_n_codec_frames(codec: StftCodec, codec_frames: int) -> None:
    codes = codec.encode(torch.randn(2, codec_frames * HOP))
    assert codes.shape == (2, codec_frames, 3)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < 32
    assert codec.decode(codes).shape == (2, codec_frames * HOP)


@pytest.mark.parametrize("samples", [0, 1, HOP - 1, 5 * HOP + 1])
def test_other_lengths_are_refused(codec: StftCodec, samples: int) -> None:
    with pytest.raises(TokenizerError, match=f"n x {HOP}"):
        codec.encode(torch.randn(1, samples))


def test_codes_of_another_codec_are_refused(codec: StftCodec) -> None:
    with pytest.raises(TokenizerError, match="frames, 3"):
        codec.decode(torch.zeros(1, 5, 4, dtype=torch.int64))


@pytest.mark.parametrize("split", [[1] * 11, [8, 3], [1, 7, 2, 1], [11]])
def test_a_stream_equals_decoding_all_codes_without_delay(codec: StftCodec, split: list[int]) -> None:
    codes = random_codes(codec, 11)
    whole = codec.decode(codes)
    stream = codec.stream()
    pieces = [stream.push(part) for part in codes.split(split, dim=1)]
    assert [piece.shape[1] for piece in pieces] == [n * HOP for n in split]
    assert whole.std() > 1e-2
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def test_streams_are_independent(codec: StftCodec) -> None:
    a, b = random_codes(codec, 6), random_codes(codec, 6)
    first, second = codec.stream(), codec.stream()
    pieces = []
    for part_a, part_b in zip(a.split(1, 1), b.split(1, 1), strict=True):
        pieces.append(first.push(part_a))
        second.push(part_b)
    assert torch.allclose(torch.cat(pieces, 1), codec.decode(a), atol=1e-5)


def test_the_audio_of_a_codec_frame_depends_on_no_later_frame(codec: StftCodec) -> None:
    vectors = torch.randn(1, 9, 8, requires_grad=True)
    codec.synthesise(vectors)[0, 4 * HOP : 5 * HOP].square().sum().backward()
    per_frame = vectors.grad.abs().sum((0, 2))
    assert (per_frame[5:] == 0).all()
    assert (per_frame[:5] > 0).all()


def test_codes_depend_on_their_window_and_the_past_only(codec: StftCodec) -> None:
    waveform = torch.randn(1, 12 * HOP, requires_grad=True)
    codec.embed(waveform)[0, 4].square().sum().backward()
    per_sample = waveform.grad[0].abs()
    assert (per_sample[4 * HOP + WINDOW :] == 0).all()
    assert (per_sample[4 * HOP + 1 : 4 * HOP + WINDOW] > 0).all()


@pytest.mark.parametrize("window", [32, 64, 128])
def test_analysis_and_synthesis_are_inverse(window: int) -> None:
    spectrum = Spectrum(HOP, window)
    waveform = torch.randn(2, 20 * HOP)
    back, _ = spectrum.synthesise(spectrum.analyse(waveform), spectrum.initial_tail(2, waveform))
    # Exact once all windows overlap; before, the audio fades in.
    assert torch.allclose(back[:, window:], waveform[:, window:], atol=1e-4)
    assert (back[:, :window].abs() <= waveform[:, :window].abs() + 1e-4).all()


def test_a_window_that_is_not_a_multiple_of_the_hop_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        small(window=40)


def test_gradients_reach_every_parameter(codec: StftCodec) -> None:
    codec.train()
    output, quantized = codec(torch.randn(2, 12 * HOP))
    assert quantized is not None
    (output.square().sum() + quantized.commitment).backward()
    dead = [name for name, p in codec.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not dead


def test_a_loaded_codec_is_bit_equal(codec: StftCodec, tmp_path: Path) -> None:
    codec.save(tmp_path / "a")
    again = StftCodec.load(tmp_path / "a")
    waveform = torch.randn(1, 10 * HOP)
    codes = codec.encode(waveform)
    assert torch.equal(again.encode(waveform), codes)
    assert torch.equal(again.decode(codes), codec.decode(codes))
    assert again.fingerprint() == codec.fingerprint()
    assert not again.training


def test_a_rounded_codec_saved_in_half_precision_keeps_its_fingerprint(codec: StftCodec, tmp_path: Path) -> None:
    round_weights(codec, torch.float16)
    codec.save(tmp_path / "half", torch.float16)
    codec.save(tmp_path / "full")
    assert StftCodec.load(tmp_path / "half").fingerprint() == codec.fingerprint()
    half, full = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full"))
    assert half < 0.6 * full


def test_the_fingerprint_covers_weights_and_settings(codec: StftCodec) -> None:
    fingerprints = {codec.fingerprint(), small(sample_rate=1600).fingerprint()}
    with torch.no_grad():
        codec.decoder.leave.bias[3] += 1e-6
    fingerprints.add(codec.fingerprint())
    codec.quantizer.levels[1].codebook[0, 0] += 1e-6
    fingerprints.add(codec.fingerprint())
    assert len(fingerprints) == 4


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "config.json").write_text("{}"), "needs 'kind' and 'config'"),
        (lambda folder: (folder / "config.json").write_text('{"kind": "Mimi", "config": {}}'), "holds a Mimi"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "is damaged"),
        (lambda folder: small(width=24).save(folder.parent / "other"), None),
    ],
)
def test_a_damaged_folder_is_refused(
    codec: StftCodec, tmp_path: Path, damage: Callable[[Path], object], message: str | None
) -> None:
    folder = tmp_path / "codec"
    codec.save(folder)
    damage(folder)
    if message is None:  # another codec's weights
        (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(TokenizerError, match=message or "does not fit"):
        StftCodec.load(folder)
