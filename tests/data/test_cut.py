from __future__ import annotations

import hashlib
import json
import os
import random
import wave
from pathlib import Path
from typing import Any

import pytest
import torch

from vidchat.data.folder import read_folder
from vidchat.data.manifest.cut import CutSettings, cut, dialogue_files
from vidchat.data.manifest.dialogues import DeriveSettings, write_dialogues
from vidchat.data.manifest.fetch import FetchError, download_command, fetch
from vidchat.data.manifest.manifest_file import ManifestError, as_table, clip_file, sorted_rows, write_manifest
from vidchat.data.media.read import header_of, read_clip
from vidchat.data.media.write import write_clip
from vidchat.dialogue import Clip

VIDEO, RATE = "-a_b_c-d_e1", 16000


def level(frame: int) -> int:
    return 20 + 4 * (frame % 50)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source video of 8 s: the left half's grey level is the frame index, the right half is blue; a tone."""
    folder = tmp_path_factory.mktemp("media")
    frames = torch.zeros(200, 3, 60, 120, dtype=torch.uint8)
    frames[:, :, :, :60] = torch.tensor([level(k) for k in range(200)], dtype=torch.uint8)[:, None, None, None]
    frames[:, 2, :, 60:] = 200
    tone = 0.5 * torch.sin(torch.arange(8 * RATE) * (2 * torch.pi * 400 / RATE))
    write_clip(folder / f"{VIDEO}.mp4", frames, tone, 25, RATE)
    return folder


def row(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    box = {"x1": 0.0, "y1": 0.0, "x2": 0.4, "y2": 1.0}
    head = {"clip": name, "video": VIDEO, "voice": "A", "speaker": f"{VIDEO}_A", "start_s": start, "end_s": end}
    return {**head, **box, "duration_s": end - start, "source": "speakervid", **more}


SPEECH = [
    {"start_s": 0.0, "end_s": 1.0, "speaker": "A"},
    {"start_s": 0.8, "end_s": 2.0, "speaker": "B"},
    {"start_s": 2.5, "end_s": 3.0, "speaker": "B"},
]
ROWS = [
    row("one", 2.0, 5.0, speech=SPEECH),
    row("quiet", 2.0, 5.0, voice="A_None", x1=0.6, x2=1.0, speaker="quiet", speech=SPEECH),
    row("late", 7.0, 8.0, voice="B", speaker=f"{VIDEO}_B"),
    row("elsewhere", 1.0, 2.0, video="AAAAAAAAAAA"),
    row("beyond", 30.0, 33.0),
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "clips.parquet"
    write_manifest(path, [as_table(sorted_rows(ROWS))])
    return path


def read(output: Path, name: str, voice: bool = False, video: str = VIDEO) -> Any:
    path = output / clip_file(name, video, voice)
    _, height, width = header_of(path)
    return read_clip(Clip(path, ""), fps=25, size=(height, width), sample_rate=RATE)


def loud(waveform: torch.Tensor, start: float, end: float) -> float:
    return float(waveform[round(start * RATE) : round(end * RATE)].square().mean().sqrt())


def test_time_box_and_silence(manifest: Path, media: Path, tmp_path: Path) -> None:
    report = cut(manifest, media, tmp_path / "data", CutSettings(), workers=1)
    assert report.counts["cut"] == 3
    clip = read(tmp_path / "data", "one")
    assert clip.frames.shape == (75, 3, 60, 48)
    levels = clip.frames.float().mean((1, 2, 3))
    assert (levels - torch.tensor([float(level(50 + k)) for k in range(75)])).abs().max() < 3, "the right instants"
    quiet = read(tmp_path / "data", "quiet").frames.float().mean((0, 2, 3))
    assert quiet[2] > 180
    assert quiet[0] < 30, "the right half of the frame"
    waveform = clip.waveform
    assert min(loud(waveform, 0.1, 0.9), loud(waveform, 0.85, 0.95), loud(waveform, 2.1, 2.4)) > 0.3, (
        "A's own speech, also where both talk"
    )
    assert max(loud(waveform, 1.05, 1.95), loud(waveform, 2.55, 2.95)) < 0.01, "only B talks"
    listener = read(tmp_path / "data", "quiet").waveform
    assert loud(listener, 0.1, 1.9) < 0.01, "a person without a voice is not heard"
    assert loud(read(tmp_path / "data", "quiet", voice=True).waveform, 0.1, 1.9) > 0.3
    assert len(read(tmp_path / "data", "late").frames) == 25


def test_missing_sources_are_reported_and_skipped(manifest: Path, media: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    assert cut(manifest, media, output, CutSettings(), workers=1, dry_run=True).counts["cut"] == 4
    assert not output.exists(), "a dry run writes nothing"
    cut(manifest, media, output, CutSettings(), workers=1)
    report = json.loads((output / "cut.report.json").read_text())
    assert report["missing_videos"] == ["AAAAAAAAAAA"]
    assert [name for name, _ in report["left_out"]] == ["beyond"]
    again = cut(manifest, media, output, CutSettings(), workers=1)
    assert (again.counts["cut"], again.counts["there already"]) == (0, 3)


def test_a_source_that_ends_early_is_reported(media: Path, tmp_path: Path) -> None:
    rows = [row("whole", 5.0, 8.0), row("half", 6.0, 12.0)]
    write_manifest(tmp_path / "clips.parquet", [as_table(rows)])
    report = cut(tmp_path / "clips.parquet", media, tmp_path / "data", CutSettings(), workers=1)
    assert (report.counts["cut"], report.counts["cut short"]) == (2, 1)
    assert report.short == [("half", "2.00 s of 6.00; its source ends there")]
    assert len(read(tmp_path / "data", "half").frames) == 50


def test_a_turn_may_span_the_track_alone(media: Path, tmp_path: Path) -> None:
    """The frames, the transcript and the start on the dialogue's clock are those of the track."""
    said = [{"text": "oh", "start_s": 0.2, "end_s": 0.6}, {"text": "yes", "start_s": 1.2, "end_s": 1.6}]
    track = {"track_start_s": 3.0, "track_end_s": 4.0, "text": "oh yes", "timed_words": said, "scene": 0}
    rows = [row("one", 2.0, 5.0, **track), row("other", 5.0, 6.0, voice="B", speaker="b", scene=1)]
    write_manifest(tmp_path / "clips.parquet", [as_table(rows)])
    cut(tmp_path / "clips.parquet", media, tmp_path / "data", CutSettings(), workers=1)
    write_dialogues(tmp_path / "clips.parquet", tmp_path / "data", DeriveSettings(("dialogue",), window="track"))
    ((first, second),) = (dialogue.turns for dialogue in read_folder(tmp_path / "data")[0])
    frames = read_clip(first.clip, fps=25, size=(60, 48), sample_rate=RATE).frames.float().mean((1, 2, 3))
    assert (len(frames), float(frames[0])) == (25, pytest.approx(level(75), abs=3))
    assert (first.start, second.start) == (0.0, 2.0), "the track begins at 3 s of the source"
    assert (first.clip.text, first.clip.text_between(0, 0.3)) == ("yes", "")
    assert first.clip.words[1].start == pytest.approx(0.2)


def test_large_crops_are_made_smaller(manifest: Path, media: Path, tmp_path: Path) -> None:
    cut(manifest, media, tmp_path / "data", CutSettings(longest_side=30), workers=1)
    assert read(tmp_path / "data", "one").frames.shape == (75, 3, 30, 24)
    with pytest.raises(ManifestError, match="longest_side=30"):
        cut(manifest, media, tmp_path / "data", CutSettings(), workers=1)


def hashes(output: Path) -> dict[str, str]:
    files = sorted(path for path in output.rglob("*") if path.is_file())
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_run_resumes_with_equal_bytes(
    manifest: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(manifest, media, tmp_path / "undisturbed", CutSettings(), workers=1)
    replace, rng, countdown, deaths = os.replace, random.Random(1), [1], 0

    def dying(source: Any, target: Any) -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            if rng.random() < 0.5:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    while True:
        countdown[0] = rng.randint(2, 4)
        try:
            cut(manifest, media, tmp_path / "data", CutSettings(), workers=1)
            break
        except KeyboardInterrupt:
            deaths += 1
            left = tmp_path / "data" / clip_file("late", VIDEO)
            left.parent.mkdir(parents=True, exist_ok=True)
            if not left.exists():
                left.with_name(f".{left.name}.12345.partial").write_bytes(b"half a clip")
    monkeypatch.setattr(os, "replace", replace)
    cut(manifest, media, tmp_path / "data", CutSettings(), workers=1)
    assert deaths >= 2
    named = {name: digest for name, digest in hashes(tmp_path / "data").items() if name.startswith("clips/")}
    assert named == {
        name: digest for name, digest in hashes(tmp_path / "undisturbed").items() if name.startswith("clips/")
    }


def test_seamless_audio_is_read_from_the_wav_beside_the_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", torch.zeros(75, 3, 16, 16, dtype=torch.uint8), None, 30, RATE)
    tone = (20000 * torch.sin(torch.arange(2 * RATE) * 0.3)).to(torch.int16)
    tone[RATE : RATE + RATE // 2] = 0
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, len(tone), "NONE", ""))
        file.writeframes(tone.numpy().tobytes())
    clip_row = row("one", 0.5, 1.7, media="a.mp4", source="seamless_interaction", x1=None, speech=None)
    write_manifest(tmp_path / "clips.parquet", [as_table([clip_row])])
    assert cut(tmp_path / "clips.parquet", tmp_path, tmp_path / "data", CutSettings(), workers=1).counts["cut"] == 1
    clip = read(tmp_path / "data", "one")
    assert clip.frames.shape == (30, 3, 16, 16)
    assert loud(clip.waveform, 0.05, 0.45) > 0.3
    assert loud(clip.waveform, 0.55, 0.95) < 0.01
    assert loud(clip.waveform, 1.05, 1.15) > 0.3


def test_machines_share_the_work(media: Path, tmp_path: Path) -> None:
    videos = [f"{VIDEO[:-1]}{k}" for k in range(1, 7)]
    for name in videos[1:]:
        (media / f"{name}.mp4").write_bytes((media / f"{VIDEO}.mp4").read_bytes())
    rows = [row(f"clip{k}", 1.0, 1.4, video=name) for k, name in enumerate(videos)]
    write_manifest(tmp_path / "clips.parquet", [as_table(sorted_rows(rows))])
    counts = [
        cut(tmp_path / "clips.parquet", media, tmp_path / "data", CutSettings(), part=(k, 3), workers=1).counts["cut"]
        for k in range(3)
    ]
    assert sum(counts) == len(videos)
    assert not cut(tmp_path / "clips.parquet", media, tmp_path / "data", CutSettings(), workers=1).counts["cut"]
    for name in videos[1:]:
        (media / f"{name}.mp4").unlink()


def test_only_the_files_that_the_dialogues_name_are_cut(manifest: Path, media: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    write_dialogues(manifest, output, DeriveSettings(branches=("single",)))
    selected = {name for name in dialogue_files(output) if "late" in name}
    cut(manifest, media, output, CutSettings(), selected=selected, workers=1)
    assert [path.name for path in output.rglob("*.mp4")] == ["late.mp4"]
    dialogues, report = read_folder(output)
    assert [d.answer.path.name for d in dialogues] == ["late.mp4"]
    assert len(report.skipped) == 4


@pytest.mark.parametrize("name", ["/etc/hosts", "../secret.mp4"])
def test_a_media_name_stays_in_its_folder(name: str, media: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "clips.parquet", [as_table([row("one", 0.0, 1.0, media=name)])])
    (media.parent / "secret.mp4").write_bytes((media / f"{VIDEO}.mp4").read_bytes())
    report = cut(tmp_path / "clips.parquet", media, tmp_path / "data", CutSettings(), workers=1)
    assert report.counts["cut"] == 0
    assert report.missing == [name]


def test_downloads_are_requested_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = download_command("yt-dlp", "-a_b_c-d_e1", tmp_path)
    assert words[-1].endswith("watch?v=-a_b_c-d_e1")
    assert not any(word == "-a_b_c-d_e1" for word in words)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(FetchError, match="not installed"):
        fetch(["-a_b_c-d_e1"], tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: "yt-dlp")
    with pytest.raises(FetchError, match="YouTube"):
        fetch(["some/file.mp4"], tmp_path)
