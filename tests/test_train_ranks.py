"""`vidchat train` on two ranks by its real command, which Lightning gives to the second rank again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_train import REPOSITORY, SMALL
from vidchat.data.media.write import write_clip
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.training.checkpoint import read_checkpoint


def command(place: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "vidchat", "train", "stage=pretrain_visual", "data=folder", f"data.root={place}/data",
        f"output_dir={place}/run", "data.size=[32,32]", "data.batch_size=1", "data.max_chunks=3", "stage.steps=2",
        "logger=none", "callbacks=null", "log_every=1", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2",
        "trainer.precision=32-true", "data.num_workers=0", "trainer.limit_val_batches=0",
        "video_vae._target_=vidchat.tokenizers.stacked.StackedVAE.load", f"video_vae.directory={place}/vae",
        "model.patch=1", "model.ratio=2", f"model.backbone={SMALL}", f"model.spatial={SMALL}", "model.flow.width=16",
        "model.flow.blocks=1", *words,
    ]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder whose name means something to a shell and to Hydra, with a data set and a tokenizer in it."""
    place = tmp_path / 'it\'s, (1) = a "b"'
    lines = []
    for number in range(2):
        frames = torch.randint(0, 256, (25 - 12 * number, 3, 32, 32), dtype=torch.uint8)
        write_clip(place / "data" / f"{number}.mp4", frames, torch.zeros(len(frames) * 640), 25, 16000)
        turn = {"role": "responder", "speaker": "a", "clip": f"{number}.mp4", "text": "word"}
        lines.append(json.dumps({"id": str(number), "split": "train", "turns": [turn]}))
    (place / "data" / "dialogues.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    StackedVAE(4, 8, [8], [1], [1]).save(place / "vae")
    return place


def test_both_ranks_read_the_paths_that_were_typed(place: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command(place), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(place / "run" / "checkpoints" / "step_00000002.ckpt")
    assert checkpoint["config"]["data"]["root"] == f"{place}/data"
    assert (place / "run" / "release" / "config.yaml").is_file()


def test_a_sweep_on_several_ranks_is_refused(place: Path) -> None:
    done = subprocess.run(
        command(place, "seed=1,2", "-m"), cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "trainer.devices=2; set trainer.devices=1" in done.stderr
    assert "Traceback" not in done.stderr
