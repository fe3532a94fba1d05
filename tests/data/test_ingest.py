from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.speakervid.imitation import imitate, video
from vidchat.data.manifest.manifest_file import COLUMNS
from vidchat.data.manifest.speakervid.annotation_folder import LayoutError
from vidchat.data.manifest.speakervid.ingest import ingest_speakervid

CLIPS, SEED = 400, 3


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str, str]]]:
    """An imitated release with one damaged record in ten, and the list of these."""
    root = tmp_path_factory.mktemp("release")
    return root, imitate(root, CLIPS, archives=3, seed=SEED, damage_every=10)


@pytest.fixture(scope="module")
def undisturbed(release: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "clips.parquet"
    ingest_speakervid(release[0], output, workers=1)
    return output


def hashes(output: Path) -> dict[str, str]:
    names = ("clips.parquet", "clips.report.json", "clips.damaged.jsonl")
    return {name: hashlib.sha256((output.parent / name).read_bytes()).hexdigest() for name in names}


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.with_suffix(".damaged.jsonl").read_text().splitlines()]


def test_every_good_record_arrives_and_every_bad_one_is_listed(release: tuple[Path, Any], undisturbed: Path) -> None:
    damaged = release[1]
    listed = [line for line in lines(undisturbed) if not line["reason"].startswith("listed, but")]
    assert Counter((line["kind"], line["reason"]) for line in listed) == Counter(
        (kind, why) for kind, _, why in damaged
    )
    lost = {name for kind, name, why in damaged if kind == "merged_anno" and why != "name comes twice"}
    everything = {clip.clip for number in range(round(CLIPS / 10.4)) for clip, *_ in video(SEED, number).clips}
    table = pq.read_table(undisturbed)
    assert set(table["clip"].to_pylist()) == everything - lost
    assert len(damaged) > 100
    report = json.loads(undisturbed.with_suffix(".report.json").read_text())
    assert report["clips"] == len(everything - lost)
    assert report["kinds"]["all_list"]["left_out"] == {"listed, but has no readable merged_anno record": len(lost)}


def test_labels_reach_their_clips(undisturbed: Path) -> None:
    """Clips are compared with the imitated labels, which lie in various archives."""
    table = pq.read_table(undisturbed).to_pylist()
    spoken = [row for row in table if row["person"] == 0 and row["text"] is not None and row["speech"] is not None]
    assert len(spoken) > CLIPS / 3
    for row in spoken[:50]:
        number = next(n for n in range(60) if video(SEED, n).key.startswith(row["video"]))
        expected = {clip.clip: rest for clip, *rest in video(SEED, number).clips}[row["clip"]]
        assert (row["start_s"], row["end_s"]) == tuple(expected[:2])
        assert [s["speaker"] for s in row["speech"]] == expected[2]
        assert all(0 <= s["start_s"] < s["end_s"] <= row["duration_s"] + 1e-6 for s in row["speech"])
        assert row["words"] == len(row["text"].split())
        assert " ".join(words["text"] for words in row["timed_words"]) == row["text"]
        assert row["timed_words"][-1]["end_s"] == pytest.approx(row["duration_s"])


def test_rows_are_in_order_and_typed(undisturbed: Path) -> None:
    table = pq.read_table(undisturbed)
    assert table.schema.names == list(COLUMNS)
    assert all(field.metadata[b"about"] for field in table.schema)
    videos = table["video"].to_pylist()
    assert len([1 for a, b in itertools.pairwise(videos) if a != b]) == len(set(videos)) - 1
    rows = table.to_pylist()
    assert all(a["start_s"] <= b["start_s"] for a, b in itertools.pairwise(rows) if a["video"] == b["video"])


def test_extracted_folders_give_the_same_clips(release: tuple[Path, Any], undisturbed: Path, tmp_path: Path) -> None:
    root = release[0]
    for archive in root.rglob("*.tar.gz"):
        folder = tmp_path / "release" / archive.parent.relative_to(root) / archive.name.removesuffix(".tar.gz")
        folder.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isfile() else None
                safe = ".." not in member.name and not member.name.startswith(("/", "other"))
                if source is not None and safe:
                    (folder / Path(member.name).name).write_bytes(source.read())
    for name in ("all_data_list.json", "SFT_set.json", "testset.json"):
        (tmp_path / "release" / name).write_bytes((root / name).read_bytes())
    output = tmp_path / "clips.parquet"
    ingest_speakervid(tmp_path / "release", output, workers=1)
    assert pq.read_table(output).equals(pq.read_table(undisturbed))


def test_a_run_that_dies_anywhere_resumes(
    release: tuple[Path, Any], undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run dies at one rename after another, just before or just after it, until one run completes."""
    output, replace, rng = tmp_path / "clips.parquet", os.replace, random.Random(0)
    countdown = [1]

    def dying(source: Any, target: Any) -> None:
        countdown[0] -= 1
        if countdown[0] == 0:
            if rng.random() < 0.5:
                replace(source, target)
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    deaths = 0
    while True:
        countdown[0] = rng.randint(1, 25)
        try:
            ingest_speakervid(release[0], output, workers=1)
            break
        except KeyboardInterrupt:
            deaths += 1
    assert deaths >= 5
    assert hashes(output) == hashes(undisturbed)


def test_a_killed_run_resumes_and_the_number_of_processes_does_not_matter(
    release: tuple[Path, Any], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "clips.parquet"
    program = (
        "import sys; from pathlib import Path; from vidchat.data.manifest.speakervid.ingest import ingest_speakervid\n"
        "if __name__ == '__main__': ingest_speakervid(Path(sys.argv[1]), Path(sys.argv[2]), workers=2)"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(release[0]), str(output)]
    for pause in (0.8, 1.5):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert hashes(output) == hashes(undisturbed)


def test_only_an_added_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, output = tmp_path / "release", tmp_path / "clips.parquet"
    imitate(root, 60, archives=2, seed=1)
    late = root / "merged_anno" / "tar_batch_1.tar.gz"
    late.rename(tmp_path / "late")
    first = ingest_speakervid(root, output, workers=1)
    assert first["joining"]["in all_data_list.json without a record"] > 0
    (tmp_path / "late").rename(late)
    read: list[Path] = []
    from vidchat.data.manifest.speakervid import parts

    original = parts.read_archive
    monkeypatch.setattr(parts, "read_archive", lambda path: read.append(path) or original(path))
    second = ingest_speakervid(root, output, workers=1)
    assert read == [late]
    assert second["clips"] > first["clips"]
    assert "in all_data_list.json without a record" not in second["joining"]
    ingest_speakervid(root, output, workers=1)
    assert read == [late], "nothing has changed"


def test_a_truncated_archive_loses_only_its_end(tmp_path: Path) -> None:
    root, output = tmp_path / "release", tmp_path / "clips.parquet"
    imitate(root, 100, archives=1, seed=1)
    complete = ingest_speakervid(root, tmp_path / "complete.parquet", workers=1)["clips"]
    archive = root / "merged_anno" / "tar_batch_0.tar.gz"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    report = ingest_speakervid(root, output, workers=1)
    assert 0.3 * complete < report["clips"] < 0.7 * complete
    assert report["kinds"]["merged_anno"]["left_out"]["archive is cut off"] == 1
    assert report["joining"]["in all_data_list.json without a record"] == complete - report["clips"]


def test_times_that_are_missing_come_from_the_scene(tmp_path: Path) -> None:
    root, output = tmp_path / "release", tmp_path / "clips.parquet"
    imitate(root, 20, archives=1, seed=1)
    clip, start, end, _ = video(1, 0).clips[0]
    folder = root / "merged_anno" / "more"
    folder.mkdir()
    (root / "merged_anno" / "tar_batch_0.tar.gz").unlink()
    (folder / f"{clip.clip}.json").write_text(json.dumps({"bbox": [0, 0, 1, 1]}))
    ingest_speakervid(root, output, workers=1)
    (row,) = pq.read_table(output).to_pylist()
    assert (row["start_s"], row["end_s"]) == (start, end)
    for scenes in (root / "raw_labels" / "scene_json").iterdir():
        scenes.unlink()
    report = ingest_speakervid(root, output, workers=1)
    assert report["clips"] == 0
    assert report["kinds"]["merged_anno"]["left_out"] == {"missing key": 1}


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="merged_anno"):
        ingest_speakervid(tmp_path, tmp_path / "clips.parquet")
    with pytest.raises(LayoutError, match="no such"):
        ingest_speakervid(tmp_path / "nowhere", tmp_path / "clips.parquet")
