from __future__ import annotations

import gc
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from filming import FLASHES, Film, offsets, shoot, shown_from
from PIL import Image
from torch.utils.data import DataLoader

from vidchat.data.media.frames import resample_frames
from vidchat.data.media.read import (
    ClipWriter,
    Media,
    MediaError,
    length_of,
    read_clip,
    read_image,
    write_clip,
)
from vidchat.data.media.waveform import mix_to_mono, place_frames, to_float
from vidchat.dialogue import Clip

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}
FILMS = [
    Film("thirty.mp4", Fraction(30), 44100),
    Film("ntsc.mp4", Fraction(30000, 1001), 48000),
    Film("slow.mp4", Fraction(25, 2), 8000, "mono"),
    Film("fast.mov", Fraction(60), 96000, "mono"),
    Film("transport.ts", Fraction(30), 44100, shift=5),
    Film("fragmented.mp4", Fraction(25), 48000, options=FRAGMENTED),
    Film("fragmented8k.mp4", Fraction(25, 2), 8000, "mono", options=FRAGMENTED),
    Film("unedited.mp4", Fraction(50), 16000, options={"use_editlist": "0"}),
    Film("surround.mkv", Fraction(24000, 1001), 48000, "5.1"),
    Film("web.webm", Fraction(30), 48000, codecs=("libvpx-vp9", "libopus")),
    Film("dropped.mkv", Fraction(30), 48000, keep=0.3),
    Film("flash.flv", Fraction(30), 44100),
    Film("old.avi", Fraction(15), 22050, codecs=("libx264", "mp3")),
]


def read(path: Path, size: tuple[int, int] = (32, 32), **more: float | None) -> Media:
    clip = Clip(path, "ann", start=more.pop("start", 0.0) or 0.0, end=more.pop("end", None))
    return read_clip(clip, fps=25, size=size, sample_rate=16000, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("film", FILMS, ids=lambda film: film.name)
def test_video_and_audio_are_aligned_from_start_to_end(tmp_path: Path, film: Film) -> None:
    path = shoot(tmp_path, film)
    media = read(path)
    late = offsets(media, shown_from(film))
    assert np.abs(late).max() <= 0.030  # of video and of audio, against what was filmed
    assert np.abs(late[:, 1] - late[:, 0]).max() <= 0.040  # one frame at 25 fps
    assert np.ptp(late[:, 1]) < 0.004  # audio does not drift
    assert media.waveform.shape == (len(media.frames) * 640,)
    assert abs(len(media.frames) - film.seconds * 25) <= 5
    # A span that is found by seeking begins at its start.
    span = read(path, start=2.6, end=7.4)
    assert len(span.frames) == 120
    late = offsets(span, [t - 2.6 for t in shown_from(film)[1:3]], [t - 2.6 for t in FLASHES[1:3]])
    assert np.abs(late[:, 1] - late[:, 0]).max() <= 0.040
    assert np.abs(late).max() <= 0.030


def test_a_span_is_cut_to_the_sample(tmp_path: Path) -> None:
    path = shoot(tmp_path, Film("a.mp4"))
    full, span = read(path), read(path, start=4.0, end=8.0)
    assert torch.equal(span.frames, full.frames[100:200])
    torch.testing.assert_close(span.waveform, full.waveform[64000:128000], atol=1e-6, rtol=0)
    assert torch.equal(read(path, max_seconds=2.0).frames, full.frames[:50])


def test_a_written_clip_reads_back_equal(tmp_path: Path) -> None:
    film = Film("a.mp4", Fraction(30), 44100)
    media = read(shoot(tmp_path, film), size=(48, 64))
    path = tmp_path / "out" / "b.mp4"
    write_clip(path, media.frames, media.waveform, 25, 16000)
    again = read(path, size=(48, 64))
    assert again.frames.shape == media.frames.shape
    assert (again.frames.float() - media.frames.float()).abs().mean() < 2
    change = offsets(again, shown_from(film)) - offsets(media, shown_from(film))
    assert np.abs(change).max() < 0.004
    assert [p.name for p in path.parent.iterdir()] == ["b.mp4"]


@pytest.mark.parametrize("frames", [1, 24, 77])
def test_the_tracks_of_a_written_clip_are_equally_long(tmp_path: Path, frames: int) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, torch.full((frames, 3, 33, 47), 99, dtype=torch.uint8), torch.zeros(frames * 640), 25, 16000)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.pix_fmt) == (48, 34, "yuv420p")
        assert video.duration is not None
        assert audio.duration is not None
        assert abs(float(video.duration * video.time_base) - float(audio.duration * audio.time_base)) <= 0.002
        assert sum(1 for _ in container.decode(video)) == frames
    with av.open(str(path)) as container:  # the decoded audio is at most one AAC frame longer
        samples = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
        assert 0 <= samples / 48000 - frames / 25 <= 0.022
    assert read(path, size=(33, 47)).frames.shape == (frames, 3, 33, 47)


def test_incremental_writing_equals_writing_at_once(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    waveform = torch.sin(torch.arange(20 * 640) / 7) * 0.4
    write_clip(tmp_path / "once.mp4", frames, waveform, 25, 16000)
    with ClipWriter(tmp_path / "increments.mp4", 25, 16000) as writer:
        for first in range(0, 20, 4):
            writer.write(frames[first : first + 4], waveform[first * 640 : (first + 4) * 640])
    once, increments = read(tmp_path / "once.mp4"), read(tmp_path / "increments.mp4")
    assert torch.equal(once.frames, increments.frames)
    torch.testing.assert_close(once.waveform, increments.waveform, atol=1e-3, rtol=0)


def test_a_clip_is_written_the_same_every_time(tmp_path: Path) -> None:
    """Rendered data sets must be bit-equal, which x264 does not guarantee."""
    smooth = torch.nn.functional.interpolate(torch.rand(20, 3, 9, 9) * 255, size=(96, 96), mode="bicubic")
    files = set()
    for _ in range(30):
        write_clip(tmp_path / "a.mp4", smooth.clamp(0, 255).to(torch.uint8), torch.zeros(20 * 640), 25, 16000)
        files.add((tmp_path / "a.mp4").read_bytes())
        read(tmp_path / "a.mp4")  # leaves other bytes in the memory of the next encoder
    assert len(files) == 1


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with ClipWriter(tmp_path / "a.mp4", 25, None) as writer:
            writer.write(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with pytest.raises(ValueError, match="no frame"), ClipWriter(tmp_path / "b.mp4", 25, None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_colours_are_kept(tmp_path: Path) -> None:
    colours = torch.tensor([[200, 50, 20], [20, 180, 60], [40, 60, 220], [128, 128, 128]], dtype=torch.uint8)
    frames = colours[:, :, None, None].expand(4, 3, 64, 64)
    write_clip(tmp_path / "a.mp4", frames, None, 25, 16000)
    seen = read(tmp_path / "a.mp4", audio=False).frames.float().mean((2, 3))
    assert (seen - colours.float()).abs().max() < 6


def turned(path: Path, degrees: int) -> Path:
    """Writes a copy of the file with a rotation matrix in its first track, as phones do."""
    box = bytearray(path.read_bytes())
    matrix = box.find(b"tkhd") + 4 + 4 + 20 + 16
    one = 1 << 16
    rows = {90: (0, one, 0, -one, 0), 180: (-one, 0, 0, 0, -one), 270: (0, -one, 0, one, 0)}[degrees]
    box[matrix : matrix + 36] = struct.pack(">9i", *rows, 0, 0, 0, 1 << 30)
    result = path.with_name(f"turned{degrees}.mp4")
    result.write_bytes(box)
    return result


def test_rotation_metadata_is_applied(tmp_path: Path) -> None:
    frame = torch.zeros(3, 32, 64, dtype=torch.uint8)
    frame[0, :, :32] = 250  # left half red
    write_clip(tmp_path / "a.mp4", frame.expand(3, -1, -1, -1), None, 25, 16000)
    red = {}
    for degrees in (90, 180, 270):  # clockwise
        seen = read(turned(tmp_path / "a.mp4", degrees), size=(64, 64), audio=False).frames[0, 0].float()
        halves = {"left": seen[:, :20], "right": seen[:, -20:], "top": seen[:20], "bottom": seen[-20:]}
        red[degrees] = max(halves, key=lambda name: float(halves[name].mean()))
    assert red == {90: "top", 180: "right", 270: "bottom"}


def test_frames_are_scaled_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    wide = torch.zeros(1, 3, 40, 120, dtype=torch.uint8)
    wide[:, 1, :, 40:80] = 240  # the middle third is green
    write_clip(tmp_path / "a.mp4", wide, None, 25, 16000)
    seen = read(tmp_path / "a.mp4", size=(20, 20), audio=False).frames[0]
    assert seen.shape == (3, 20, 20)
    assert seen[1, :, 1:-1].min() > 180


def test_an_image_file_is_read_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 30), (0, 0, 250))
    image.paste((250, 0, 0), (0, 0, 30, 30))
    image.save(tmp_path / "a.png")
    exif = image.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.png", (30, 60))[0, 15].float().argmax() < 30
    upright = read_image(tmp_path / "a.jpg", (60, 30))
    assert upright.shape == (3, 60, 30)
    assert upright[0, :20].float().mean() > 200 > 50 > upright[0, -20:].float().mean()
    video = shoot(tmp_path, Film("v.mp4", seconds=1.0))
    assert torch.equal(read_image(video, (32, 32)), read(video).frames[0])


def test_a_long_frame_is_shown_for_its_duration() -> None:
    frames = [(0.0, 0.04, "a"), (0.04, 1.0, "still"), (1.04, 0.04, "b")]
    shown = list(resample_frames(frames, 25))
    assert shown == ["a"] + ["still"] * 25 + ["b"]
    halved = list(resample_frames([(k / 50, 1 / 50, str(k)) for k in range(10)], 25))
    assert halved == ["0", "2", "4", "6", "8"]
    doubled = list(resample_frames([(k / 12.5, 1 / 12.5, str(k)) for k in range(3)], 25))
    assert doubled == ["0", "0", "1", "1", "2", "2"]


def test_audio_follows_jumps_of_time_stamps_but_not_their_rounding() -> None:
    ramp = np.arange(1, 1601, dtype=np.float32)[None]
    rounded = [(round(k * 0.1003, 3), ramp[:, k * 100 : (k + 1) * 100]) for k in range(16)]
    np.testing.assert_array_equal(place_frames(rounded, 1000, 1600), ramp)
    gap = place_frames([(-0.05, ramp[:, :100]), (0.5, ramp[:, 100:200])], 1000, 650)
    np.testing.assert_array_equal(gap[0, :50], ramp[0, 50:100])
    assert not gap[0, 50:500].any()
    np.testing.assert_array_equal(gap[0, 500:600], ramp[0, 100:200])
    assert not gap[0, 600:].any()


def test_channels_are_mixed_without_clipping() -> None:
    loud = np.ones((6, 4), np.float32)
    names = ["FL", "FR", "FC", "LFE", "BL", "BR"]
    np.testing.assert_allclose(mix_to_mono(loud, names), 1.0, rtol=1e-6)
    rumble = np.zeros((6, 4), np.float32)
    rumble[3] = 1
    assert not mix_to_mono(rumble, names).any()
    np.testing.assert_allclose(mix_to_mono(np.array([[1.0], [0.0]], np.float32), ["FL", "FR"]), [0.5])


def test_samples_of_every_format_become_floats() -> None:
    for kind in (np.uint8, np.int16, np.int32, np.int64):
        limits = np.iinfo(kind)
        half = np.array([limits.min, (limits.min + limits.max + 1) // 2, limits.max], kind)
        np.testing.assert_allclose(to_float(half), [-1, 0, 1], atol=0.01)
    assert to_float(np.array([0.25], np.float64)).dtype == np.float32


def test_audio_that_ends_early_is_followed_by_silence(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    tone = torch.sin(torch.arange(16000) * 0.3) * 0.5
    write_clip(path, torch.zeros(50, 3, 32, 32, dtype=torch.uint8), tone, 25, 16000)
    waveform = read(path).waveform
    assert waveform.shape == (32000,)
    assert waveform[:15500].abs().max() > 0.4
    assert waveform[17000:].abs().max() < 1e-3


def test_errors_name_the_fault_and_the_file(tmp_path: Path) -> None:
    film = shoot(tmp_path, Film("ok.mp4", seconds=2.0))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a film " * 100)
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:2000])
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{film}\n#EXT-X-ENDLIST\n")
    write_clip(tmp_path / "silent.mp4", torch.zeros(5, 3, 32, 32, dtype=torch.uint8), None, 25, 16000)
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = {
        "nowhere.mp4": "no such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "cannot be decoded",
        "cut.mp4": "cannot be decoded",
        "list.m3u8": "playlist|cannot be decoded",
        "silent.mp4": "no audio track",
        "sound.m4a": "no video track",
    }
    for name, message in expected.items():
        with pytest.raises(MediaError, match=message) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(MediaError, match="ends before 5 s"):
        read(film, start=5.0)
    assert not read(tmp_path / "silent.mp4", audio=False).waveform.any()
    assert length_of(film) == pytest.approx(2.0)


class Films:
    """A data set that decodes in its workers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 8

    def __getitem__(self, k: int) -> torch.Tensor:
        gc.collect()
        return read(self.path, start=k * 0.1).frames[:10]


def test_forked_workers_do_not_hang_after_writing_and_errors_in_the_parent(tmp_path: Path) -> None:
    """A worker that collects garbage of the parent must not wait for the parent's threads."""
    gc.collect()
    gc.disable()  # so that the parent's garbage is still there
    try:
        for k in range(3):
            with ClipWriter(tmp_path / f"{k}.mp4", 25, 16000) as writer:
                writer.write(torch.zeros(50, 3, 32, 32, dtype=torch.uint8), torch.zeros(32000))
            cycle: list[object] = [writer]  # as an exception's traceback makes one
            cycle.append(cycle)
            del cycle, writer
        _decode_in_workers(tmp_path / "0.mp4")
    finally:
        gc.enable()


def _decode_in_workers(path: Path) -> None:
    expected = torch.stack([read(path, start=k * 0.1).frames[:10] for k in range(8)])
    caught = None
    try:
        read(path, start=9.0)
    except MediaError as error:
        caught = error  # its traceback keeps the reader's stack frames alive
    loader = DataLoader(Films(path), batch_size=8, num_workers=2, timeout=20)  # type: ignore[arg-type]
    assert torch.equal(next(iter(loader)), expected)
    assert caught is not None


def test_the_real_clips_are_read(real_clips: Path) -> None:
    media = read(real_clips / "grid_man_red.mp4", size=(96, 96))
    assert media.frames.shape == (75, 3, 96, 96)
    assert media.waveform.shape == (48000,)
    assert media.waveform.abs().max() > 0.2


def test_the_alignment_test_detects_late_audio(tmp_path: Path) -> None:
    """A film whose audio is two frames late is measured as late."""
    film = Film("a.mp4")
    media = read(shoot(tmp_path, film))
    late = replace(media, waveform=torch.cat([torch.zeros(1280), media.waveform[:-1280]]))
    assert offsets(late, shown_from(film))[:, 1].min() > 0.075
