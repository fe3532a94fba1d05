from __future__ import annotations

import io
import json
import os
import socket
import tracemalloc
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from folders import Codec, Vae, film, make_folder, write_manifest
from oddities import corners, readers, shoot, tone, with_title
from PIL import Image
from typer.testing import CliRunner

from vidchat.cli.data import app
from vidchat.data.loading.crops import ClipDataModule
from vidchat.data.media.container import MOST_PIXELS, STILL, StillStream, pixel_aspect
from vidchat.data.media.read import MediaError, read_audio, read_clip, read_image
from vidchat.data.tokens.encode import fill
from vidchat.data.tokens.encoder import ClipEncoder, Segment
from vidchat.data.tokens.token_cache import TokenCache
from vidchat.dialogue import Clip


def refusal(read: Callable[[], object]) -> str | None:
    """Returns the message of a `MediaError`, if there is one; other errors pass through."""
    try:
        read()
    except MediaError as error:
        return str(error)
    return None


def broken(*_: object, **__: object) -> Any:
    raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "an unforeseen error")


@pytest.mark.parametrize(
    "where",
    [
        "vidchat.data.media.container.av.open",
        "vidchat.data.media.container.duration_of",
        "vidchat.data.media.read.duration_of",
        "vidchat.data.media.read.cover",
        "vidchat.data.media.read.crop",
        "vidchat.data.media.read.mix_to_mono",
        "vidchat.data.media.frames.orientation",
        "vidchat.data.media.container.read_still",
        "vidchat.data.media.container.pixel_aspect",
    ],
)
def test_an_error_at_any_step_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()])
    monkeypatch.setattr(where, broken)
    messages = [message for _, read in readers(path) if (message := refusal(read)) is not None]
    assert messages
    assert all("UnicodeDecodeError" in message and str(path) in message for message in messages)


@pytest.mark.parametrize("title", ["Café à la crème".encode("latin-1"), "标题文字".encode("gbk"), b"\xff\xfe\x00\x80"])
def test_tags_of_any_encoding_are_ignored(tmp_path: Path, title: bytes) -> None:
    path = with_title(shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()]), title)
    assert title in path.read_bytes()
    for _, read in readers(path):
        read()


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_an_unknown_codec_is_refused(tmp_path: Path) -> None:
    path = patched(shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()]), b"avc1", b"zzzz")
    with pytest.raises(MediaError, match="video track has an unknown codec"):
        read_clip(Clip(path, ""), fps=25, size=(32, 32), sample_rate=16000)
    deaf = patched(shoot(tmp_path / "b.mp4", [corners()] * 25, waveforms=[tone()]), b"mp4a", b"zzzz")
    patched(deaf, b"\x40\x15", b"\xfe\x15")  # the codec's second identifier
    with pytest.raises(MediaError, match="audio track has an unknown codec"):
        read_clip(Clip(deaf, ""), fps=25, size=(32, 32), sample_rate=16000)
    assert len(read_clip(Clip(deaf, ""), fps=25, size=(32, 32), sample_rate=16000, audio=False).frames) == 25


JUMPS = {
    "twelve hours": [k / 25 if k < 6 else 43200 + k / 25 for k in range(12)],
    "an hour": [k / 25 if k < 6 else 3600 + k / 25 for k in range(12)],
    "two minutes": [k / 25 if k < 6 else 120 + k / 25 for k in range(12)],
    "often, by less": [k * (STILL - 1) for k in range(12)],
    "once, after many frames": [k / 25 if k < 60 else STILL + 5 + k / 25 for k in range(72)],
    "at the end": [*(k / 25 for k in range(11)), 5000.0],
}


@pytest.mark.parametrize("jump", JUMPS)
def test_time_stamps_that_jump_are_refused_before_frames_are_stacked(tmp_path: Path, jump: str) -> None:
    path = shoot(tmp_path / "a.mkv", [corners()] * len(JUMPS[jump]), waveforms=[tone(0.5)], times=JUMPS[jump])
    assert path.stat().st_size < 12_000
    tracemalloc.start()
    messages = [message for _, read in readers(path) if (message := refusal(read)) is not None]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(messages) >= 3  # the full clip, its end, and the crops
    assert all("time stamps jump" in message for message in messages)
    assert peak < 30 << 20
    encoder = ClipEncoder(Vae(), Codec(), 25, (32, 32))
    for part in ("first", "last", "spans"):
        with pytest.raises(MediaError, match="time stamps jump"):
            encoder.read(Segment(Clip(path, ""), part, 1_000_000))  # type: ignore[arg-type]


def test_a_clip_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shoot(tmp_path / "a.mp4", [corners()] * 50)
    point: dict[str, Any] = {"fps": 25, "size": (32, 32), "sample_rate": 16000, "audio": False}
    monkeypatch.setattr("vidchat.data.media.read.MOST_BYTES", 40 * 32 * 32 * 3)
    with pytest.raises(MediaError, match="longer than 2 s, the limit of one read"):
        read_clip(Clip(path, ""), **point)
    assert len(read_clip(Clip(path, "", end=1.0), **point).frames) == 25
    assert len(read_clip(Clip(path, ""), **point, last=9).frames) == 9


def test_the_last_frames_equal_those_of_the_full_clip(tmp_path: Path) -> None:
    moving = [np.roll(corners(), 3 * k, axis=1) for k in range(40)]
    path = shoot(tmp_path / "a.mp4", moving, waveforms=[tone(1.6) * np.linspace(0, 1, 25600)])
    for fps, rate in ((25, 16000), (24, 16000)):
        full, end = (
            read_clip(Clip(path, ""), fps=fps, size=(32, 32), sample_rate=rate, last=last) for last in (None, 9)
        )
        first = len(full.frames) - 9
        assert np.array_equal(end.frames, full.frames[first:])
        begin, sample = round((first + 1) * rate / fps), round(rate / fps)
        assert np.array_equal(end.waveform[sample : sample + 4000], full.waveform[begin : begin + 4000])


def test_a_too_large_image_is_refused(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=f"more than {MOST_PIXELS:,}"):
        read_image(tmp_path / "a.png", (32, 32))


def test_an_image_that_would_be_scaled_too_large_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="1x20000 pixels would be scaled"):
        read_image(tmp_path / "a.png", (512, 512))


def test_implausible_pixel_aspects_and_sample_rates_are_refused(tmp_path: Path) -> None:
    assert pixel_aspect(StillStream(sample_aspect_ratio=Fraction(16, 11))) == Fraction(16, 11)
    for aspect in (Fraction(40), Fraction(1, 60000)):
        with pytest.raises(ValueError, match="times as wide as high"):
            pixel_aspect(StillStream(sample_aspect_ratio=aspect))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 2_000_000, 0, "NONE", ""))
        file.writeframes(bytes(20_000))
    with pytest.raises(MediaError, match="2000000 samples per second"):
        read_audio(Clip(tmp_path / "a.wav", ""), 16000, 16000, wav=tmp_path / "a.wav")


def test_more_audio_than_fits_into_memory_is_refused(tmp_path: Path) -> None:
    path = shoot(tmp_path / "a.mkv", [corners()] * 5, waveforms=[tone(0.2)])
    with pytest.raises(MediaError, match="more than 1800 s of audio"):
        read_audio(Clip(path, ""), 10**12, 16000)


def test_a_frame_that_the_decoder_had_to_conceal_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 96, 128, 3), dtype=np.uint8)
    data = shoot(tmp_path / "a.ts", list(noise)).read_bytes()
    path, corrupt_files = tmp_path / "b.ts", 0
    for size in range(len(data) // 4, len(data), len(data) // 12):
        path.write_bytes(data[:size])
        try:
            with av.open(str(path)) as container:
                corrupt = any(frame.is_corrupt for frame in container.decode(video=0))
        except av.error.FFmpegError:
            continue
        if corrupt:
            corrupt_files += 1
            with pytest.raises(MediaError, match=r"the frame at .* s is damaged"):
                read_clip(Clip(path, ""), fps=25, size=(32, 32), sample_rate=16000, audio=False)
    assert corrupt_files


def cut_off(data: bytes, kind: str) -> bytes:
    half = data[: len(data) // 2]
    return half if kind == "cut" else half + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["cut", "ended"])
def test_a_truncated_jpeg_is_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=80)
    (tmp_path / "whole.jpg").write_bytes(buffer.getvalue())
    read_image(tmp_path / "whole.jpg", (32, 32))
    (tmp_path / "a.jpg").write_bytes(cut_off(buffer.getvalue(), kind))
    with pytest.raises(MediaError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg", (32, 32))


def test_intact_jpegs_of_every_kind_are_read(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8))
    for options in ({"progressive": True}, {"subsampling": 0}, {"quality": 1}, {"restart_marker_blocks": 2}, {}):
        image.save(tmp_path / "a.jpg", **options)
        read_image(tmp_path / "a.jpg", (32, 32))
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"data that a phone appends" * 100)
    read_image(tmp_path / "a.jpg", (32, 32))


def test_other_files_than_images_and_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>')
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        for path in [*tmp_path.iterdir(), tmp_path / ("n" * 300), tmp_path / "nul\0.mp4"]:
            messages = {"pipe.mp4": "a pipe or a device", "folder.mp4": "a folder", "s.mp4": "a pipe or a device"}
            for _, read in readers(path):
                with pytest.raises(MediaError, match=messages.get(path.name, path.suffix or "n{300}")):
                    read()


def test_a_file_name_that_looks_like_a_protocol_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "concat:a%03d.mp4", 9)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(Clip(Path("concat:a%03d.mp4"), ""), fps=25, size=(9, 9), sample_rate=16000).frames) == 9


# In a data set such clips are skipped, counted and named.


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A data set of two usable dialogues and several unusable ones."""
    root = make_folder(tmp_path / "set", ["train", "train"])
    lines = [json.loads(line) for line in (root / "dialogues.jsonl").read_text().splitlines()]
    good = root / "a0.mp4"
    (root / "unknown.mp4").write_bytes(good.read_bytes().replace(b"avc1", b"zzzz"))
    (root / "notes.mp4").write_text("no film")
    Image.fromarray(corners()).save(root / "image.mp4", "JPEG")
    shoot(root / "jump.mp4", [corners()] * 12, waveforms=[tone(0.5)], times=JUMPS["an hour"])
    os.mkfifo(root / "pipe.mp4")
    for name in ("unknown", "notes", "image", "jump", "pipe"):
        turn = {"role": "responder", "speaker": name, "clip": f"{name}.mp4"}
        lines.append({"id": name, "split": "train", "turns": [turn]})
    lines.append({"id": "absurd", "turns": [{**lines[0]["turns"][1], "start": 10**400}]})
    write_manifest(root, lines)
    return root


def test_encoding_skips_unusable_clips(damaged: Path) -> None:
    from vidchat.data.folder import read_folder

    dialogues, report = read_folder(damaged)
    assert sorted(where for where, _ in report.skipped) == ["dialogues.jsonl line 7", "dialogues.jsonl line 8"]
    cache = TokenCache(damaged, ClipEncoder(Vae(), Codec(), 25, (16, 16)), 6)
    report = fill(cache, [Segment(turn.clip, "first", 6) for dialogue in dialogues for turn in dialogue.turns])
    assert report.read == 4
    assert sorted(where for where, _ in report.skipped) == ["image.mp4", "jump.mp4", "notes.mp4", "unknown.mp4"]


def test_encoding_from_media_shards_names_the_clip(damaged: Path, tmp_path: Path) -> None:
    from vidchat.data.folder import read_folder
    from vidchat.data.tokens.media_shards import pack

    pack(damaged, tmp_path / "packed", 1 << 30)
    root = tmp_path / "packed"
    cache = TokenCache(root, ClipEncoder(Vae(), Codec(), 25, (16, 16)), 6)
    dialogues = read_folder(root, media=False)[0]
    report = fill(cache, [Segment(turn.clip, "first", 6) for dialogue in dialogues for turn in dialogue.turns])
    assert report.read == 4
    for name, reason in report.skipped:
        assert name == "pipe.mp4" or f"{name} in {root / 'media'}" in reason, (name, reason)


def test_crops_skip_unusable_clips(damaged: Path) -> None:
    data = ClipDataModule(damaged, 25, (16, 16), 16000, 9, 3200, batch_size=3)
    data.setup()
    skipped = {where for where, _ in data.report.skipped}
    assert {"jump.mp4", "notes.mp4", "image.mp4", "unknown.mp4", "dialogues.jsonl line 7"} <= skipped


def test_the_commands_skip_unusable_clips(damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(*words: Any) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output

    output = run("ingest", damaged, "--output", tmp_path / "clips.parquet", "source=folder")
    assert "4 clips" in output
    listed = (tmp_path / "clips.damaged.jsonl").read_text()
    assert all(name in listed for name in ("unknown.mp4", "notes.mp4", "image.mp4", "pipe.mp4", "line 8"))
    output = run("stats", damaged, "--output", tmp_path / "stats.png")
    assert all(f"left out: dialogues.jsonl line {number}: " in output for number in (3, 4, 5, 7, 8)), output
    output = run("show", damaged, "count=9", "--output", tmp_path / "a.html")
    assert "cannot be decoded" in (tmp_path / "a.html").read_text()
    run("pack", damaged, "--output", tmp_path / "packed")
    run("stats", tmp_path / "packed", "--output", tmp_path / "stats.png")
    caplog.clear()
    run("show", tmp_path / "packed", "count=9", "--output", tmp_path / "a.html")
    assert all(f"{name}.mp4 in " in caplog.text for name in ("unknown", "notes", "image"))
    assert not list(tmp_path.rglob("*.partial"))
