from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from oddities import corners, names, shoot, tone

from vidchat.data.media.read import MediaError, read_audio, read_clip, read_image
from vidchat.data.media.waveform import uncancelled
from vidchat.dialogue import Clip


def two_tracks(path: Path, flags: tuple[Disposition, Disposition]) -> Path:
    """Writes a black video track and one with coloured corners, 5 frames each."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in flags]
        for stream, flag in zip(streams, flags, strict=True):
            stream.width, stream.height, stream.pix_fmt, stream.disposition = 64, 32, "yuv420p", flag
        for stream, image in zip(streams, (np.zeros((32, 64, 3), np.uint8), corners()), strict=True):
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    return path


def test_the_video_track_with_the_default_flag_is_read(tmp_path: Path) -> None:
    path = two_tracks(tmp_path / "a.mkv", (Disposition(0), Disposition.default))
    assert names(read_image(path, (32, 64)).numpy()) == "RGBY"
    first = two_tracks(tmp_path / "b.mkv", (Disposition.default, Disposition.default))
    assert not read_image(first, (32, 64)).max() > 8


def test_the_audio_track_with_the_default_flag_is_read(tmp_path: Path) -> None:
    path = shoot(tmp_path / "a.mkv", [corners()] * 25, waveforms=[0 * tone(), tone()])
    assert read_clip(Clip(path, ""), fps=25, size=(16, 16), sample_rate=16000).waveform.abs().max() > 0.4


def with_cover(path: Path, film: bool) -> Path:
    """Writes an mp4 with audio, a black cover image and, optionally, a video."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264" if film else "mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 64, 32, "yuv420p" if film else "yuvj420p"
        streams = [video]
        if film:
            cover = container.add_stream("mjpeg", rate=25)
            cover.width, cover.height, cover.pix_fmt = 64, 32, "yuvj420p"
            streams.append(cover)
        streams[-1].disposition = Disposition.attached_pic
        track = container.add_stream("aac", rate=16000, layout="mono")
        for stream, count in zip(streams, [5, 1] if film else [1], strict=True):
            image = corners() if count == 5 else np.zeros((32, 64, 3), np.uint8)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        audio = av.AudioFrame.from_ndarray(tone().astype(np.float32), "fltp", "mono")
        audio.sample_rate = 16000
        container.mux([*track.encode(audio), *track.encode(None)])
    with av.open(str(path)) as container:
        assert [s for s in container.streams.video if s.disposition & Disposition.attached_pic]
    return path


def test_a_cover_image_is_no_video(tmp_path: Path) -> None:
    assert names(read_image(with_cover(tmp_path / "a.mp4", film=True), (32, 64)).numpy()) == "RGBY"
    with pytest.raises(MediaError, match="no video track"):
        read_image(with_cover(tmp_path / "song.mp4", film=False), (32, 64))


def test_a_cover_image_in_the_first_track_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs write it first; FFmpeg's muxers write it last."""
    from vidchat.data.media import container

    path = two_tracks(tmp_path / "a.mkv", (Disposition(0), Disposition(0)))

    class Cover:
        disposition = Disposition.attached_pic

    with av.open(str(path)) as opened:
        streams = type("Streams", (), {"video": [Cover(), *opened.streams.video]})
        chosen = container.stream_of(type("Container", (), {"streams": streams}), "video", path)  # type: ignore[arg-type]
        assert chosen is opened.streams.video[0]


@pytest.mark.parametrize("balance", [-1.0, -0.9])
def test_channels_that_cancel_each_other_out_are_read(tmp_path: Path, balance: float) -> None:
    stereo = np.concatenate([tone(), balance * tone()])
    path = shoot(tmp_path / "a.mkv", [corners()] * 25, waveforms=[stereo])
    waveform = read_clip(Clip(path, ""), fps=25, size=(16, 16), sample_rate=16000).waveform
    assert 0.4 < waveform.abs().max() < 0.6
    span = read_audio(Clip(path, "", start=0.4), 4000, 8000)
    assert 0.4 < np.abs(span).max() < 0.6


def test_other_channels_are_mixed() -> None:
    left, right = tone()[0], np.cos(np.arange(16000) * 0.7)
    for mixed, first in (((left + right) / 2, left), (left / 2, left), (right / 2, 0 * left)):
        assert uncancelled(np.stack([mixed, first])) is not first
        np.testing.assert_array_equal(uncancelled(np.stack([mixed, first])), mixed)
    np.testing.assert_array_equal(uncancelled(left[None]), left)
