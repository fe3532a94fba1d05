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
    """What a `MediaError` says, if there is one; anything else comes through."""
    try:
        read()
    except MediaError as error:
        return str(error)
    return None


def broken(*_: object, **__: object) -> Any:
    raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "what no one has thought of")


@pytest.mark.parametrize(
    "where",
    [
        "vidchat.data.media.container.av.open",
        "vidchat.data.media.container.duration_of",
        "vidchat.data.media.read.duration_of",
        "vidchat.data.media.read.fill",
        "vidchat.data.media.read.crop",
        "vidchat.data.media.read.mix_to_mono",
        "vidchat.data.media.frames.orientation",
        "vidchat.data.media.container.still_of",
        "vidchat.data.media.container.pixel_aspect",
    ],
)
def test_what_goes_wrong_at_any_step_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()])
    monkeypatch.setattr(where, broken)
    told = [why for _, read in readers(path) if (why := refusal(read)) is not None]
    assert told
    assert all("UnicodeDecodeError" in why and str(path) in why for why in told)


@pytest.mark.parametrize("title", ["Café à la crème".encode("latin-1"), "标题文字".encode("gbk"), b"\xff\xfe\x00\x80"])
def test_tags_of_any_encoding_are_of_no_interest(tmp_path: Path, title: bytes) -> None:
    path = with_title(shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()]), title)
    assert title in path.read_bytes()
    for _, read in readers(path):
        read()


def patched(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    return path


def test_an_unknown_codec_is_told_of(tmp_path: Path) -> None:
    path = patched(shoot(tmp_path / "a.mp4", [corners()] * 25, waveforms=[tone()]), b"avc1", b"zzzz")
    with pytest.raises(MediaError, match="video track has an unknown codec"):
        read_clip(Clip(path, ""), fps=25, size=(32, 32), sample_rate=16000)
    deaf = patched(shoot(tmp_path / "b.mp4", [corners()] * 25, waveforms=[tone()]), b"mp4a", b"zzzz")
    patched(deaf, b"\x40\x15", b"\xfe\x15")  # the codec's other name
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
    told = [why for _, read in readers(path) if (why := refusal(read)) is not None]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(told) >= 3  # the whole clip, its end, and the crops
    assert all("time stamps jump" in why for why in told)
    assert peak < 30 << 20
    encoder = ClipEncoder(Vae(), Codec(), 25, (32, 32))
    for part in ("first", "last", "spans"):
        with pytest.raises(MediaError, match="time stamps jump"):
            encoder.read(Segment(Clip(path, ""), part, 1_000_000))  # type: ignore[arg-type]


def test_a_clip_that_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shoot(tmp_path / "a.mp4", [corners()] * 50)
    point: dict[str, Any] = {"fps": 25, "size": (32, 32), "sample_rate": 16000, "audio": False}
    monkeypatch.setattr("vidchat.data.media.read.MOST_BYTES", 40 * 32 * 32 * 3)
    with pytest.raises(MediaError, match="longer than 2 s, the most that is read at once"):
        read_clip(Clip(path, ""), **point)
    assert len(read_clip(Clip(path, "", end=1.0), **point).frames) == 25
    assert len(read_clip(Clip(path, ""), **point, last=9).frames) == 9


def test_the_end_of_a_clip_is_the_end_of_the_whole(tmp_path: Path) -> None:
    moving = [np.roll(corners(), 3 * k, axis=1) for k in range(40)]
    path = shoot(tmp_path / "a.mp4", moving, waveforms=[tone(1.6) * np.linspace(0, 1, 25600)])
    for fps, rate in ((25, 16000), (24, 16000)):
        whole, end = (
            read_clip(Clip(path, ""), fps=fps, size=(32, 32), sample_rate=rate, last=last) for last in (None, 9)
        )
        first = len(whole.frames) - 9
        assert np.array_equal(end.frames, whole.frames[first:])
        begin, sample = round((first + 1) * rate / fps), round(rate / fps)
        assert np.array_equal(end.waveform[sample : sample + 4000], whole.waveform[begin : begin + 4000])


def test_frames_without_end_are_refused(tmp_path: Path) -> None:
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match=f"more than {MOST_PIXELS:,}"):
        read_image(tmp_path / "a.png", (32, 32))


def test_a_shape_that_would_have_to_be_scaled_beyond_all_bounds_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(tmp_path / "a.png")
    with pytest.raises(MediaError, match="1x20000 would have to be scaled"):
        read_image(tmp_path / "a.png", (512, 512))


def test_pixels_and_rates_that_no_one_has_are_refused(tmp_path: Path) -> None:
    assert pixel_aspect(StillStream(sample_aspect_ratio=Fraction(16, 11))) == Fraction(16, 11)
    for aspect in (Fraction(40), Fraction(1, 60000)):
        with pytest.raises(ValueError, match="times as wide as high"):
            pixel_aspect(StillStream(sample_aspect_ratio=aspect))
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 2_000_000, 0, "NONE", ""))
        file.writeframes(bytes(20_000))
    with pytest.raises(MediaError, match="2000000 samples per second"):
        read_audio(Clip(tmp_path / "a.wav", ""), 16000, 16000, beside=tmp_path / "a.wav")


def test_more_sound_than_fits_into_memory_is_refused(tmp_path: Path) -> None:
    path = shoot(tmp_path / "a.mkv", [corners()] * 5, waveforms=[tone(0.2)])
    with pytest.raises(MediaError, match="more than 1800 s of audio"):
        read_audio(Clip(path, ""), 10**12, 16000)


def test_a_frame_that_the_decoder_had_to_guess_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (10, 96, 128, 3), dtype=np.uint8)
    whole = shoot(tmp_path / "a.ts", list(noise)).read_bytes()
    path, guessed = tmp_path / "b.ts", 0
    for size in range(len(whole) // 4, len(whole), len(whole) // 12):
        path.write_bytes(whole[:size])
        try:
            with av.open(str(path)) as container:
                corrupt = any(frame.is_corrupt for frame in container.decode(video=0))
        except av.error.FFmpegError:
            continue
        if corrupt:
            guessed += 1
            with pytest.raises(MediaError, match=r"the frame at .* s is damaged"):
                read_clip(Clip(path, ""), fps=25, size=(32, 32), sample_rate=16000, audio=False)
    assert guessed


def cut_off(data: bytes, kind: str) -> bytes:
    half = data[: len(data) // 2]
    return half if kind == "cut" else half + b"\xff\xd9"


@pytest.mark.parametrize("kind", ["cut", "ended"])
def test_a_jpeg_that_is_cut_off_is_refused(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=80)
    (tmp_path / "whole.jpg").write_bytes(buffer.getvalue())
    read_image(tmp_path / "whole.jpg", (32, 32))
    (tmp_path / "a.jpg").write_bytes(cut_off(buffer.getvalue(), kind))
    with pytest.raises(MediaError, match=r"a\.jpg"):
        read_image(tmp_path / "a.jpg", (32, 32))


def test_every_kind_of_jpeg_is_whole(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8))
    for options in ({"progressive": True}, {"subsampling": 0}, {"quality": 1}, {"restart_marker_blocks": 2}, {}):
        image.save(tmp_path / "a.jpg", **options)
        read_image(tmp_path / "a.jpg", (32, 32))
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"what a phone appends" * 100)
    read_image(tmp_path / "a.jpg", (32, 32))


def test_what_is_no_image_and_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>')
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.mp4"))
        for path in [*tmp_path.iterdir(), tmp_path / ("n" * 300), tmp_path / "nul\0.mp4"]:
            told = {"pipe.mp4": "a pipe or a device", "folder.mp4": "a folder", "s.mp4": "a pipe or a device"}
            for _, read in readers(path):
                with pytest.raises(MediaError, match=told.get(path.name, path.suffix or "n{300}")):
                    read()


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film(tmp_path / "concat:a%03d.mp4", 9)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip(Clip(Path("concat:a%03d.mp4"), ""), fps=25, size=(9, 9), sample_rate=16000).frames) == 9


# And in a data set such clips are skipped, counted and named.


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A data set of two dialogues that are good and several that are not."""
    root = make_folder(tmp_path / "set", ["train", "train"])
    lines = [json.loads(line) for line in (root / "dialogues.jsonl").read_text().splitlines()]
    good = root / "a0.mp4"
    (root / "unknown.mp4").write_bytes(good.read_bytes().replace(b"avc1", b"zzzz"))
    (root / "notes.mp4").write_text("no film")
    Image.fromarray(corners()).save(root / "picture.mp4", "JPEG")
    shoot(root / "jump.mp4", [corners()] * 12, waveforms=[tone(0.5)], times=JUMPS["an hour"])
    os.mkfifo(root / "pipe.mp4")
    for name in ("unknown", "notes", "picture", "jump", "pipe"):
        turn = {"role": "responder", "speaker": name, "clip": f"{name}.mp4"}
        lines.append({"id": name, "split": "train", "turns": [turn]})
    lines.append({"id": "absurd", "turns": [{**lines[0]["turns"][1], "start": 10**400}]})
    write_manifest(root, lines)
    return root


def test_encoding_skips_them(odd: Path) -> None:
    from vidchat.data.folder import read_folder

    dialogues, report = read_folder(odd)
    assert sorted(where for where, _ in report.skipped) == ["dialogues.jsonl line 7", "dialogues.jsonl line 8"]
    cache = TokenCache(odd, ClipEncoder(Vae(), Codec(), 25, (16, 16)), 6)
    told = fill(cache, [Segment(turn.clip, "first", 6) for dialogue in dialogues for turn in dialogue.turns])
    assert told.read == 4
    assert sorted(where for where, _ in told.skipped) == ["jump.mp4", "notes.mp4", "picture.mp4", "unknown.mp4"]


def test_encoding_from_media_shards_names_the_clip(odd: Path, tmp_path: Path) -> None:
    from vidchat.data.folder import read_folder
    from vidchat.data.tokens.media_shards import pack

    pack(odd, tmp_path / "packed", 1 << 30)
    root = tmp_path / "packed"
    cache = TokenCache(root, ClipEncoder(Vae(), Codec(), 25, (16, 16)), 6)
    dialogues = read_folder(root, media=False)[0]
    told = fill(cache, [Segment(turn.clip, "first", 6) for dialogue in dialogues for turn in dialogue.turns])
    assert told.read == 4
    for name, why in told.skipped:
        assert name == "pipe.mp4" or f"{name} in {root / 'media'}" in why, (name, why)


def test_crops_skip_them(odd: Path) -> None:
    data = ClipDataModule(odd, 25, (16, 16), 16000, 9, 3200, batch_size=3)
    data.setup()
    skipped = {where for where, _ in data.report.skipped}
    assert {"jump.mp4", "notes.mp4", "picture.mp4", "unknown.mp4", "dialogues.jsonl line 7"} <= skipped


def test_the_commands_skip_them(odd: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def run(*words: Any) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output

    told = run("ingest", odd, "--output", tmp_path / "clips.parquet", "source=folder")
    assert "4 clips" in told
    damaged = (tmp_path / "clips.damaged.jsonl").read_text()
    assert all(name in damaged for name in ("unknown.mp4", "notes.mp4", "picture.mp4", "pipe.mp4", "line 8"))
    told = run("stats", odd, "--output", tmp_path / "stats.png")
    assert all(f"left out: dialogues.jsonl line {number}: " in told for number in (3, 4, 5, 7, 8)), told
    told = run("show", odd, "count=9", "--output", tmp_path / "a.html")
    assert "cannot be decoded" in (tmp_path / "a.html").read_text()
    run("pack", odd, "--output", tmp_path / "packed")
    run("stats", tmp_path / "packed", "--output", tmp_path / "stats.png")
    caplog.clear()
    run("show", tmp_path / "packed", "count=9", "--output", tmp_path / "a.html")
    assert all(f"{name}.mp4 in " in caplog.text for name in ("unknown", "notes", "picture"))
    assert not list(tmp_path.rglob("*.partial"))
