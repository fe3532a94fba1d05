"""`train.py` from a folder of mp4 to a release, at the smallest size there is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from vidchat.cli import train as train_script
from vidchat.data.media.read import MediaError, read_clip
from vidchat.data.media.write import write_clip
from vidchat.dialogue import Clip
from vidchat.release import load_release
from vidchat.runtime.errors import user_message
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training.metrics import read_metrics

REPOSITORY = Path(__file__).parents[1]
SHAPE = "width: 16, layers: 2, heads: 2, kv_heads: 2, head_dim: 8, mlp_width: 16"
SMALL = f"{{_target_: vidchat.model.transformer.Shape, {SHAPE}}}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three dialogues of one second, and tokenizers for it."""
    root = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    lines = []
    for number, split in enumerate(["train", "train", "val"]):
        turns = []
        for role in ("initiator", "responder"):
            clip = f"{role}{number}.mp4"
            frames = torch.randint(0, 256, (25, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_clip(root / clip, frames, 0.1 * torch.randn(16000, generator=generator), 25, 16000)
            turns.append({"role": role, "speaker": role, "clip": clip, "text": f"word {number}"})
        lines.append(json.dumps({"id": f"d{number}", "split": split, "turns": turns}))
    (root / "dialogues.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    StackedVAE(4, 8, [8], [1], [1]).save(root / "video_vae")
    codec = StftCodec(codebooks=2, vocabulary=8, code_width=4, width=8, encoder_blocks=1, decoder_blocks=1)
    codec.save(root / "audio_codec")
    return root


def config(folder: Path, output: Path, stage: str, *overrides: str) -> DictConfig:
    words = [
        f"stage={stage}", "data=folder", f"data.root={folder}", f"output_dir={output}", "data.size=[32,32]",
        "data.batch_size=2", "data.max_chunks=3", "stage.steps=2", "logger=none", "log_every=1",
        "video_vae._target_=vidchat.tokenizers.stacked.StackedVAE.load", f"video_vae.directory={folder}/video_vae",
        "audio_codec._target_=vidchat.tokenizers.stft_codec.StftCodec.load",
        f"audio_codec.directory={folder}/audio_codec", "model.patch=1", "model.ratio=2", f"model.backbone={SMALL}",
        f"model.spatial={SMALL}", "model.flow.width=16", "model.flow.blocks=1", "callbacks.samples.every=2",
        "trainer.val_check_interval=2",
    ]  # fmt: skip
    if stage != "pretrain_visual":
        words.append(f"model.depth={SMALL}")
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return compose("train", [*words, *overrides])


def test_the_three_stages_one_after_the_other(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    visual = train_script.train(config(folder, tmp_path / "visual", "pretrain_visual"))
    both = train_script.train(config(folder, tmp_path / "av", "pretrain_av", f"init_from={visual}"))
    assert "new here and untrained: depth, embed.codes" in caplog.text
    dyadic = train_script.train(config(folder, tmp_path / "dyadic", "sft_dyadic", f"init_from={both}"))
    assert "there but not used: conditions" in caplog.text

    assert load_release(visual).responder.depth is None
    release = load_release(dyadic)
    assert release.hears
    assert release.clock.codec_frames_per_chunk == 8
    assert release.size == (32, 32)
    curves = read_metrics(tmp_path / "dyadic" / "metrics.csv")
    assert {"train/loss", "train/video", "train/audio", "train/lr", "train/grad_norm", "val/loss"} <= curves.keys()
    assert {"speed/chunks_per_s", "speed/data_wait"} <= curves.keys()
    assert [step for step, _ in curves["train/loss"]] == [0, 1]
    for name in ("step_00000002_0.mp4", "truth_0.mp4"):
        clip = Clip(tmp_path / "dyadic" / "samples" / name, "someone")
        media = read_clip(clip, fps=25, size=(32, 32), sample_rate=16000)
        assert len(media.frames) == 12
        assert media.waveform.abs().max() > 0
    with pytest.raises(MediaError):  # a model without audio writes none
        read_clip(Clip(tmp_path / "visual/samples/step_00000002_0.mp4", "x"), fps=25, size=(32, 32), sample_rate=16000)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_stage_has_the_losses_of_one_that_never_stopped(
    folder: Path, tmp_path: Path, accumulate: int
) -> None:
    def run(name: str, *overrides: str) -> None:
        options = (f"trainer.accumulate_grad_batches={accumulate}", "callbacks={}", "stage.optimizer.steps=4")
        train_script.train(config(folder, tmp_path / name, "sft_dyadic", *options, *overrides))

    run("straight", "stage.steps=4")
    run("stopped", "stage.steps=2")
    run("stopped", "stage.steps=4")
    straight, stopped = (read_metrics(tmp_path / name / "metrics.csv") for name in ("straight", "stopped"))
    assert len(straight["train/loss"]) == 4
    for name in ("train/loss", "train/video", "train/audio", "train/grad_norm", "train/lr", "val/loss"):
        assert stopped[name] == straight[name]
    one, other = (load_release(tmp_path / name / "release").responder for name in ("straight", "stopped"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_tokenizer_starts_from_weights_of_the_seed(folder: Path, tmp_path: Path) -> None:
    vae = "{_target_: vidchat.tokenizers.stacked.StackedVAE, channels: 2, patch: 8, widths: [4], "
    words = [
        "stage=tokenizer_video", "data=folder", f"data.root={folder}", "data.size=[32,32]", "data.batch_size=1",
        "stage.steps=1", "logger=none", "callbacks={}", "stage.frames=5", "stage.module.start_batches=0",
        "+stage.module.statistics_batches=1", f"video_vae={vae} encoder_blocks: [1], decoder_blocks: [1]}}",
        "trainer.limit_val_batches=0",
    ]  # fmt: skip
    weights = []
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            torch.rand(len(weights))  # whatever the state of the generator
            built = compose("train", [*words, f"output_dir={tmp_path / name}", f"seed={seed}"])
            weights.append(StackedVAE.load(train_script.train(built)).encoder[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], atol=0.01)


def test_half_precision_runs_on_a_cpu(folder: Path, tmp_path: Path) -> None:
    half = config(folder, tmp_path / "half", "sft_dyadic", "trainer.precision=bf16-mixed", "callbacks={}")
    train_script.train(half)
    losses = [value for _, value in read_metrics(tmp_path / "half" / "metrics.csv")["train/loss"]]
    train_script.train(config(folder, tmp_path / "full", "sft_dyadic", "callbacks={}"))
    full = [value for _, value in read_metrics(tmp_path / "full" / "metrics.csv")["train/loss"]]
    assert losses != full
    assert losses == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.root=???"], r"data\.root must be given"),
        (["data.root=null"], r"data\.root must be given"),
        (["video_vae.directory=null"], r"video_vae\.directory must be given"),
        (["data.root='\\${{oc.env:HOME}}'"], r"data\.root holds '\$\{', which a config cannot hold"),
        (["data.root=nowhere"], "data.root=nowhere is no folder"),
        (["init_from=nowhere"], "init_from=nowhere does not exist"),
        (["stage.steps=0"], "stage.steps must be a whole number above 0"),
        (["seed=null"], "seed must be a whole number, got None"),
        (["data.size=3"], "data.size must be HEIGHTxWIDTH in pixels, such as 480x768, or a list"),
        (["data.size=[32,0]"], "or a list [height, width], got [32, 0]"),
        (["checkpoints=null"], "checkpoints must hold keys of its own, got None"),
        (["stage.optimizer=3"], "stage.optimizer must hold keys of its own, got 3"),
        (["data.max_chunks=0"], "data.max_chunks must be a whole number above 0"),
        (["video_vae.directory=nowhere"], "video_vae.directory=nowhere is no folder"),
        (["data.fps=30"], "7.5 chunks/s"),
        (["audio_codec._target_=vidchat.tokenizers.stacked.StackedVAE.load"], "holds a StftCodec, not a StackedVAE"),
        (["init_from={folder}/video_vae"], "a tokenizer's folder"),
        (["init_from={folder}/dialogues.jsonl"], "not a readable checkpoint"),
        (["text_tokenizer._target_=no.such.Tokenizer"], "no.such.Tokenizer cannot be imported"),
        (["+model.flow.widht=3"], "unexpected keyword argument 'widht'"),
        (["condition.text=answer", "+model.colour=red"], "unexpected keyword argument 'colour'"),
        (["stage.branch=multi_turn"], "no dialogue of the split 'train'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(folder: Path, tmp_path: Path, overrides: list[str], expected: str) -> None:
    words = [word.format(folder=folder) for word in overrides]
    with pytest.raises(Exception) as caught:
        train_script.train(config(folder, tmp_path / "out", "sft_dyadic", *words))
    message = user_message(caught.value)
    assert message is not None, caught.value
    assert expected.replace("\\", "") in message
    assert "\n" not in message


def test_a_resume_with_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    train_script.train(config(folder, tmp_path, "sft_dyadic", "callbacks={}"))
    with pytest.raises(ValueError, match=r"model\.flow\.width \(16 -> 24\)"):
        train_script.train(config(folder, tmp_path, "sft_dyadic", "callbacks={}", "model.flow.width=24"))


def test_a_finished_run_says_so_and_touches_nothing(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = ("callbacks={}", "trainer.limit_val_batches=0")
    release = train_script.train(config(folder, tmp_path / "run", "sft_dyadic", *options))
    before = {path: path.stat().st_mtime_ns for path in release.rglob("*")}
    for steps in (2, 1):
        again = config(folder, tmp_path / "run", "sft_dyadic", *options, f"stage.steps={steps}")
        assert train_script.train(again) == release
        assert f"run in {tmp_path / 'run'} is finished: it was trained for 2 steps" in caplog.text
        assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before
        caplog.clear()
    with pytest.raises(ValueError, match=r"stage\.optimizer\.lr \(0\.001 -> 0\.5\).*output_dir.*resume=null"):
        train_script.train(config(folder, tmp_path / "run", "sft_dyadic", *options, "stage.optimizer.lr=0.5"))
    assert {path: path.stat().st_mtime_ns for path in release.rglob("*")} == before
    shutil.rmtree(release)
    train_script.train(config(folder, tmp_path / "run", "sft_dyadic", *options))
    load_release(release)
    train_script.train(config(folder, tmp_path / "run", "sft_dyadic", *options, "resume=null", "stage.steps=1"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000001.ckpt"]
    assert (tmp_path / "run.old1" / "release" / "config.yaml").is_file()


def test_a_changed_rate_counts_when_its_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    options = ("callbacks={}", "trainer.limit_val_batches=0", "stage.optimizer.warmup=0")
    train_script.train(config(folder, tmp_path, "sft_dyadic", *options))
    resume = f"resume={tmp_path}/checkpoints/step_00000002.ckpt"
    changed = (*options, "stage.steps=3", "stage.optimizer.schedule=constant", "stage.optimizer.lr=0.5")
    train_script.train(config(folder, tmp_path, "sft_dyadic", *changed, resume))
    assert read_metrics(tmp_path / "metrics.csv")["train/lr"][-1] == (2, 0.5)
    train_script.train(config(folder, tmp_path, "sft_dyadic", *changed))  # from now on it is this run's rate


def test_a_tokenizer_killed_before_its_export_is_exported_with_its_statistics(folder: Path, tmp_path: Path) -> None:
    options = ("video_vae=stacked", "video_vae.channels=4", "video_vae.patch=8", "video_vae.widths=[8]",
               "video_vae.encoder_blocks=[1]", "video_vae.decoder_blocks=[1]", "callbacks={}", "data.batch_size=1",
               "trainer.limit_val_batches=0", "stage.module.start_batches=0")  # fmt: skip
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        words = ["stage=tokenizer_video", "data=folder", f"data.root={folder}", f"output_dir={tmp_path}",
                 "data.size=[32,32]", "stage.steps=2", "logger=none", *options]  # fmt: skip
        plan = compose("train", words)
    release = train_script.train(plan)
    first = StackedVAE.load(release)
    shutil.rmtree(release)
    train_script.train(plan)
    assert StackedVAE.load(release).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["build_module", "fit", "mark_finished"])
def test_a_signal_never_ends_an_unfinished_run_with_code_0(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: signal.Signals
) -> None:
    """Twice, 20 ms apart; then the same command ends it as if nothing had been."""
    place = train_script.run_folder if moment == "mark_finished" else train_script
    real = getattr(place, moment)

    def stopped(*args: Any, **kwargs: Any) -> Any:
        os.kill(os.getpid(), number)
        time.sleep(0.02)
        os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    plan = config(folder, tmp_path, "sft_dyadic", "callbacks={}", "trainer.limit_val_batches=0")
    monkeypatch.setattr(place, moment, stopped)
    with pytest.raises(SystemExit) as caught:
        train_script.train(plan)
    assert caught.value.code == 128 + number
    monkeypatch.undo()
    load_release(train_script.train(plan))


def test_each_job_of_a_sweep_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []

    def train(plan: DictConfig) -> None:
        assert plan.stage.export == f"{plan.output_dir}/release"
        seen.append((plan.output_dir, plan.stage.optimizer.lr))

    monkeypatch.setattr(train_script, "train", train)
    monkeypatch.chdir(tmp_path)
    command = ["train.py", "-m", "stage=pretrain_av,sft_dyadic", "data=folder", "data.root=/a/b"]
    monkeypatch.setattr(sys, "argv", [*command, "stage.optimizer.lr=0.001,0.1"])
    train_script.main()
    names = [f"outputs/{stage}/data.root=_a_b,data=folder,stage.optimizer.lr={lr},stage={stage}"
             for stage in ("pretrain_av", "sft_dyadic") for lr in (0.001, 0.1)]  # fmt: skip
    assert seen == list(zip(names, [0.001, 0.1] * 2, strict=True))
    assert all((tmp_path / name / "train.log").is_file() for name in names)
    monkeypatch.setattr(sys, "argv", [*command[:1], "stage=sft_dyadic", "data=folder", "output_dir=here"])
    train_script.main()
    assert seen[-1][0] == "here"
    GlobalHydra.instance().clear()


def test_the_command_line_tells_mistakes_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "stage=sft_dyadic", "data=folder", "data.root=nowhere"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "data.root=nowhere is no folder" in done.stderr
    assert "Traceback" not in done.stderr
