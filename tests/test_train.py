"""`train.py` from a folder of mp4 to a release, at the smallest size there is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import train as train_script
from vidchat.data.media.read import MediaError, read_clip
from vidchat.data.media.write import write_clip
from vidchat.dialogue import Clip
from vidchat.errors import plain_message
from vidchat.release import load_release
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
            pictures = torch.randint(0, 256, (25, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_clip(root / clip, pictures, 0.1 * torch.randn(16000, generator=generator), 25, 16000)
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
    assert release.responder.conditions.switches.turns
    assert release.clock.frames_per_chunk == 8
    assert release.size == (32, 32)
    curves = read_metrics(tmp_path / "dyadic" / "metrics.csv")
    assert {"train/loss", "train/video", "train/audio", "train/lr", "train/grad_norm", "val/loss"} <= curves.keys()
    assert {"speed/chunks_per_s", "speed/data_wait"} <= curves.keys()
    assert [step for step, _ in curves["train/loss"]] == [0, 1]
    for name in ("step_00000002_0.mp4", "truth_0.mp4"):
        clip = Clip(tmp_path / "dyadic" / "samples" / name, "someone")
        media = read_clip(clip, fps=25, size=(32, 32), sample_rate=16000)
        assert len(media.pictures) == 12
        assert media.waveform.abs().max() > 0
    with pytest.raises(MediaError):  # a model without sound writes none
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
        "stage.steps=1", "logger=none", "callbacks={}", "stage.pictures=5", "stage.module.start_batches=0",
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
    ("overrides", "told"),
    [
        (["data.root=???"], r"data\.root must be given"),
        (["data.root=null"], r"data\.root must be given"),
        (["video_vae.directory=null"], r"video_vae\.directory must be given"),
        (["data.root='\\${{oc.env:HOME}}'"], r"data\.root holds '\$\{', which a config cannot carry"),
        (["data.root=nowhere"], "data.root=nowhere is no folder"),
        (["init_from=nowhere"], "init_from=nowhere does not exist"),
        (["stage.steps=0"], "stage.steps must be a whole number above 0"),
        (["data.max_chunks=0"], "data.max_chunks must be a whole number above 0"),
        (["video_vae.directory=nowhere"], "video_vae.directory=nowhere is no folder"),
        (["data.fps=30"], "7.5 chunks/s"),
        (["audio_codec._target_=vidchat.tokenizers.stacked.StackedVAE.load"], "holds a StftCodec, not a StackedVAE"),
        (["init_from={folder}/video_vae"], "a tokenizer's folder"),
        (["init_from={folder}/dialogues.jsonl"], "not a readable checkpoint"),
        (["+model.flow.widht=3"], "unexpected keyword argument 'widht'"),
        (["condition.text=answer", "+model.colour=red"], "unexpected keyword argument 'colour'"),
        (["stage.branch=multi_turn"], "no dialogue of the split 'train'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(folder: Path, tmp_path: Path, overrides: list[str], told: str) -> None:
    words = [word.format(folder=folder) for word in overrides]
    with pytest.raises(Exception) as caught:
        train_script.train(config(folder, tmp_path / "out", "sft_dyadic", *words))
    message = plain_message(caught.value)
    assert message is not None, caught.value
    assert told.replace("\\", "") in message
    assert "\n" not in message


def test_a_resume_with_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    train_script.train(config(folder, tmp_path, "sft_dyadic", "callbacks={}"))
    with pytest.raises(ValueError, match=r"model\.flow\.width \(16 -> 24\)"):
        train_script.train(config(folder, tmp_path, "sft_dyadic", "callbacks={}", "model.flow.width=24"))


def test_the_command_line_tells_mistakes_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "stage=sft_dyadic", "data=folder", "data.root=nowhere"]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "data.root=nowhere is no folder" in done.stderr
    assert "Traceback" not in done.stderr
