"""The shipped audio codec."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vidchat.data.media.read import read_clip
from vidchat.dialogue import ChunkClock, Clip, ClockError
from vidchat.playground.people.speaker_voice import Voice, speak
from vidchat.tokenizers.quantizer import code_use
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training.spectral import SpectralDistance, low_pass

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "demo" / "audio_codec"


@pytest.fixture(scope="module")
def codec() -> StftCodec:
    if not (SHIPPED / "model.safetensors").is_file():
        pytest.skip("checkpoints/demo/audio_codec is not there")
    return StftCodec.load(SHIPPED)


def whole_hops(waveform: torch.Tensor, hop: int) -> torch.Tensor:
    return waveform[None, : len(waveform) // hop * hop]


def distances(codec: StftCodec, waveform: torch.Tensor) -> tuple[float, float]:
    """Spectral distance of the round trip, and of a 4 kHz low-pass."""
    distance = SpectralDistance(codec.sample_rate)
    round_trip = codec.decode(codec.encode(waveform))
    assert round_trip.shape == waveform.shape
    reference = low_pass(waveform, codec.sample_rate, 4000)
    return float(sum(distance(round_trip, waveform))), float(sum(distance(reference, waveform)))


def test_a_chunk_of_the_demo_is_eight_codec_frames(codec: StftCodec) -> None:
    clock = ChunkClock(fps=25, temporal_stride=4, sample_rate=codec.sample_rate, hop=codec.hop)
    assert clock.codec_frames_per_chunk == 8
    with pytest.raises(ClockError):
        ChunkClock(fps=30, temporal_stride=4, sample_rate=codec.sample_rate, hop=codec.hop)


# A timbre that the codec was not trained on and one that it was, both with an unseen sentence.
@pytest.mark.parametrize("variant", ["m4", "f2"])
def test_speech_survives_the_round_trip(codec: StftCodec, variant: str) -> None:
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed (extra: demo)")
    spoken = speak("seven grey geese flew over the frozen harbour", Voice(variant, 45, 50, 170)).waveform
    waveform = whole_hops(torch.from_numpy(spoken), codec.hop)
    ours, reference = distances(codec, waveform)
    assert ours < 0.85 * reference
    used, _ = code_use(codec.encode(waveform), codec.vocabulary)
    assert (used > 30).all()


def test_silence_stays_quiet(codec: StftCodec) -> None:
    silence = torch.zeros(1, 50 * codec.hop)
    assert codec.decode(codec.encode(silence)).abs().max() < 0.01


def test_recorded_speech_is_recognisable(codec: StftCodec, real_clips: Path) -> None:
    """The codec is trained on synthesised voices only, so recorded speech is worse, but far better than silence."""
    clip = Clip(real_clips / "grid_woman_green.mp4", speaker="grid")
    media = read_clip(clip, fps=25, size=(32, 32), sample_rate=codec.sample_rate)
    waveform = whole_hops(media.waveform, codec.hop)
    distance = SpectralDistance(codec.sample_rate)
    round_trip, silence = codec.decode(codec.encode(waveform)), torch.zeros_like(waveform)
    assert sum(distance(round_trip, waveform)) < 0.6 * sum(distance(silence, waveform))
