from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from folders import film, make_folder, write_manifest

from vidchat.data.folder import FolderError
from vidchat.data.loading.crops import ClipDataModule
from vidchat.data.media.read import MediaError


def module(root: Path, frames: int | None = 9, samples: int | None = 3200, **more: float) -> ClipDataModule:
    data = ClipDataModule(root, 25, (16, 16), 16000, frames, samples, batch_size=3, **more)  # type: ignore[arg-type]
    data.setup()
    return data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("clips"), ["train", "train", "val"])


def test_crops_have_their_shapes_and_begin_anywhere(root: Path) -> None:
    data = module(root)
    batches = list(islice(iter(data.train_dataloader()), 12))
    assert batches[0]["frames"].shape == (3, 9, 3, 16, 16)
    assert batches[0]["frames"].dtype == torch.uint8
    assert batches[0]["waveform"].shape == (3, 3200)
    first = torch.cat([batch["frames"][:, 0].float().mean((1, 2, 3)) for batch in batches])
    assert len({round(float(level) / 4) for level in first}) > 5
    steps = torch.cat([batch["frames"].float().mean((2, 3, 4)).diff(dim=1) for batch in batches])
    assert ((steps - 4).abs() < 2).all()  # consecutive frames


def test_picture_and_sound_of_a_crop_are_of_one_span(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 50, loud_from=25)
    turn = {"role": "responder", "speaker": "r", "clip": "a.mp4"}
    write_manifest(tmp_path, [{"id": "d", "branch": "single", "turns": [turn]}])
    for memory in (1.0, 0.0):
        data = module(tmp_path, frames=9, samples=5120, memory_gb=memory)
        heard = 0
        for batch in islice(iter(data.train_dataloader()), 12):
            for frames, waveform in zip(batch["frames"], batch["waveform"], strict=True):
                first = round((float(frames[0].float().mean()) - 20) / 4)
                onset = (25 - first) * 640
                if 700 < onset < 4400:
                    heard += 1
                    assert waveform[: onset - 650].abs().max() < 0.1
                    assert waveform[onset + 100 : onset + 700].abs().max() > 0.4
        assert heard > 2


def test_clips_out_of_memory_are_decoded_when_drawn_to_the_same_end(root: Path) -> None:
    kept, read = (list(islice(iter(module(root, memory_gb=gb).train_dataloader()), 4)) for gb in (1.0, 0.0))
    for one, other in zip(kept, read, strict=True):
        assert torch.equal(one["frames"], other["frames"])
        torch.testing.assert_close(one["waveform"], other["waveform"], atol=1e-4, rtol=0)


def test_resuming_is_exact_whatever_the_workers(root: Path) -> None:
    unbroken = list(islice(iter(module(root).train_dataloader()), 6))
    for workers in (0, 2):
        data = module(root, num_workers=workers)
        data.load_state_dict({"consumed": 2, "seed": 0, "batch_size": 3})
        resumed = islice(iter(data.train_dataloader()), 4)
        for one, other in zip(resumed, unbroken[2:], strict=True):
            assert torch.equal(one["frames"], other["frames"])
            assert torch.equal(one["waveform"], other["waveform"])


def test_pictures_or_sound_alone(root: Path) -> None:
    audio = next(iter(module(root, frames=None, samples=6400).train_dataloader()))
    assert {key: value.shape for key, value in audio.items()} == {"waveform": (3, 6400)}
    frames = next(iter(module(root, samples=None).train_dataloader()))
    assert set(frames) == {"frames"}
    with pytest.raises(ValueError, match="frames or audio"):
        module(root, frames=None, samples=None)


def test_validation_is_every_clip_once_and_the_same_every_time(root: Path) -> None:
    data = module(root)
    batches = [list(data.val_dataloader()), list(data.val_dataloader())]
    assert [len(batch["frames"]) for batch in batches[0]] == [2]
    assert torch.equal(batches[0][0]["frames"], batches[1][0]["frames"])


def test_bad_clips_are_skipped_counted_and_named(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train", "train"])
    (tmp_path / "q0.mp4").write_bytes(b"not a film")
    film(tmp_path / "a1.mp4", 5)
    data = module(tmp_path)
    assert data.report.read == 2
    assert sorted(where for where, _ in data.report.skipped) == ["a1.mp4", "q0.mp4"]
    assert any("a crop needs 9" in why for _, why in data.report.skipped)
    # Out of memory, the same clips are found bad when they are drawn, and replaced.
    lazy = module(tmp_path, memory_gb=0.0)
    assert next(iter(lazy.train_dataloader()))["frames"].shape[0] == 3


def test_a_data_set_of_bad_clips_only_is_an_error(tmp_path: Path) -> None:
    make_folder(tmp_path, ["train"])
    for name in ("q0.mp4", "a0.mp4"):
        (tmp_path / name).write_bytes(b"not a film")
    with pytest.raises(FolderError, match="no usable clip"):
        module(tmp_path).train_dataloader()
    with pytest.raises(MediaError, match="in a row"):
        next(iter(module(tmp_path, memory_gb=0.0).train_dataloader()))
