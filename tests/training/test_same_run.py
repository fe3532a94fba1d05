"""What may change when a run goes on, and that what changes counts from the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.fakes import NoisyModule, Recorder, StreamModule, make_trainer
from vidchat.release.format import FORMAT
from vidchat.training.checkpoint import find_checkpoint
from vidchat.training.checkpoint_file import CheckpointError, write_checkpoint
from vidchat.training.same_run import check_resumed

TRAINER = {"precision": "32-true", "accumulate_grad_batches": 1, "devices": 2, "num_nodes": 1, "log_every_n_steps": 5}
OPTIMIZER = {"lr": 0.1, "steps": 5, "betas": [0.9, 0.95], "weight_decay": 0.0, "no_decay": ["flow"], "patience": 5}
CONFIG = {
    "stage": {"name": "one", "steps": 5, "export": "out", "module": {"model": {"width": 8}, "optimizer": OPTIMIZER}}
    | {"optimizer": OPTIMIZER, "datamodule": {"data": {"batch_size": 2, "num_workers": 0, "prepare": {"n": 1}}}},
    "model": {"width": 8}, "condition": {"text": None}, "seed": 0, "init_from": None, "checkpoints": {"every": 5},
    "data": {"root": "here", "batch_size": 2, "num_workers": 0, "prepare": {"n": 1}}, "trainer": TRAINER,
    "resume": "auto",
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """The config with other values; `__` stands for the dots of a key."""
    config: dict[str, Any] = CONFIG
    for name, value in changes.items():
        config = _set(config, name.split("__"), value)
    return config


def _set(node: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    first, *rest = keys
    return node | {first: _set(node[first], rest, value) if rest else value}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "checkpoints" / "step_00000001.ckpt"
    path.parent.mkdir(parents=True)
    write_checkpoint({"ema": {}, "config": CONFIG, "fingerprints": {"video_vae": "f1"}, "format": FORMAT}, path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"stage__steps": 9, "stage__optimizer__steps": 9, "stage__module__optimizer__steps": 9},
        {"stage__export": "there", "checkpoints__every": 1, "stage__optimizer__patience": 9},
        {"trainer__devices": 1, "trainer__log_every_n_steps": 1},
        {"trainer__devices": 1, "data__batch_size": 4, "stage__datamodule__data__batch_size": 4},
        {"trainer__devices": 1, "trainer__accumulate_grad_batches": 2},
        {"data__num_workers": 2, "stage__datamodule__data__num_workers": 2},
        {"data__prepare__n": 2, "stage__datamodule__data__prepare__n": 2},
        {"data__root": str(Path.cwd() / "here")},
    ],
)
def test_what_does_not_change_the_training_may_change(
    source: Path, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    check_resumed(source, changed(**change), {"video_vae": "f1", "audio_codec": "g"})
    assert not caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage__optimizer__lr": 0.2}, "stage.optimizer.lr (0.1 -> 0.2)"),
        ({"stage__module__optimizer__lr": 0.2}, "stage.module.optimizer.lr (0.1 -> 0.2)"),
        ({"stage__optimizer__betas": [0.8, 0.9]}, "stage.optimizer.betas ([0.9, 0.95] -> [0.8, 0.9])"),
        ({"stage__optimizer__weight_decay": 1.0}, "stage.optimizer.weight_decay (0.0 -> 1.0)"),
        ({"trainer__precision": "bf16-mixed"}, "trainer.precision (32-true -> bf16-mixed)"),
        ({"trainer__accumulate_grad_batches": 4}, "trainer.accumulate_grad_batches (1 -> 4)"),
        ({"data__batch_size": 4, "stage__datamodule__data__batch_size": 4}, "data.batch_size (2 -> 4)"),
        ({"data__batch_size": 4, "trainer__devices": "auto"}, "data.batch_size (2 -> 4)"),
        ({"data__root": "there"}, "data.root (here -> there)"),
        ({"seed": 1}, "seed (0 -> 1)"),
        ({"init_from": "x"}, "init_from (None -> x)"),
    ],
)
def test_another_experiment_is_refused_with_the_ways_out_and_goes_on_from_a_named_checkpoint(
    source: Path, change: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_resumed(source, changed(**change), {})
    assert f"another config: {message}; set output_dir" in str(caught.value), "each change once"
    for way in ("output_dir", "resume=null", f"resume={source}"):
        assert way in str(caught.value)
    check_resumed(source, changed(**change, resume=str(source)), {})
    assert message in caplog.text


@pytest.mark.parametrize("resume", ["auto", "a path"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage__name": "two"}, "stage.name (one -> two)"),
        ({"model__width": 16, "stage__module__model__width": 16}, "model.width (8 -> 16)"),
        ({"condition__text": "answer"}, "condition.text (None -> answer)"),
        ({"stage__optimizer__no_decay": []}, "stage.optimizer.no_decay (['flow'] -> [])"),
    ],
)
def test_what_the_weights_are_made_for_never_changes(
    source: Path, change: dict[str, Any], message: str, resume: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_resumed(source, changed(**change, resume=resume), {})
    assert f"another config: {message}; set output_dir" in str(caught.value)
    with pytest.raises(CheckpointError, match="with the video_vae f1, and this run has f2"):
        check_resumed(source, changed(resume=resume), {"video_vae": "f2"})


def test_a_run_of_the_earlier_layout_is_refused_by_the_version_that_goes_on_with_it(tmp_path: Path) -> None:
    path = tmp_path / "step_00000001.ckpt"
    write_checkpoint({"ema": {}, "config": CONFIG, "fingerprints": {"video_vae": "f1"}}, path)
    with pytest.raises(CheckpointError, match=r"vidchat 0\.1\.0 \(git tag v0\.1\.0\) is the last version that runs it"):
        check_resumed(path, changed(), {"video_vae": "f1"})
    write_checkpoint({"ema": {}, "config": CONFIG}, path)  # of a tokenizer
    check_resumed(path, changed(), {})


def go_on(folder: Path, accumulate: int = 1, **settings: Any) -> tuple[NoisyModule, Recorder, list[torch.Tensor]]:
    """Four steps, then one with other settings; and the weights before it."""
    options = {"warmup": 0, "schedule": "constant"}
    if not folder.exists():
        make_trainer(folder, 4, []).fit(NoisyModule(**options), datamodule=StreamModule())
    path = find_checkpoint("auto", folder / "checkpoints")
    assert path is not None
    state = torch.load(path, weights_only=True)["state_dict"]
    module, recorder = NoisyModule(**(options | settings)), Recorder()
    trainer = make_trainer(folder / "on", 5, [recorder], accumulate_grad_batches=accumulate, val_check_interval=1000)
    trainer.fit(module, datamodule=StreamModule(), ckpt_path=path, weights_only=True)
    return module, recorder, [state[name] for name, _ in module.named_parameters()]


def test_the_next_step_uses_a_changed_rate_decay_and_betas(tmp_path: Path) -> None:
    module, _, before = go_on(tmp_path / "a", lr=1e-12)
    for old, new in zip(before, module.parameters(), strict=True):
        torch.testing.assert_close(old, new, atol=1e-9, rtol=0)
    module, _, before = go_on(tmp_path / "b")
    assert not torch.allclose(before[0], module.network[0].weight, atol=1e-4)
    # Decay of 1 / lr takes a map's weights away whole; what is left is the step itself.
    module, _, before = go_on(tmp_path / "c", lr=1e-3, weight_decay=1e3)
    assert before[0].abs().max() > 0.1
    assert module.network[0].weight.abs().max() < 0.01
    assert module.network[0].bias.abs().max() > 0.01
    module, _, _ = go_on(tmp_path / "d", betas=(0.5, 0.6), lr=2e-3)
    (optimizer,) = module.trainer.optimizers
    assert {(group["betas"], group["lr"]) for group in optimizer.param_groups} == {((0.5, 0.6), 2e-3)}
    assert {int(state["step"]) for state in optimizer.state.values()} == {5}, "the moments go on"
    assert module.trainer.lr_scheduler_configs[0].scheduler.get_last_lr() == [2e-3, 2e-3]


@pytest.mark.parametrize("accumulate", [2, 3])
def test_the_next_step_has_all_its_micro_batches(tmp_path: Path, accumulate: int) -> None:
    module, recorder, _ = go_on(tmp_path / "a", accumulate=accumulate)
    assert len(recorder.losses) == accumulate
    assert module.trainer.global_step == 5
