"""Small trainings of all five stages, for one process and for two that train together.

Run as `python -m tests.training.two_ranks FOLDER` with the environment that Lightning starts ranks in; writes what it
saw to `FOLDER/rank_R.pt`, and at the end rank 1 dies in the middle of a step.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from torch import Tensor

from tests import batches
from tests.generation.conftest import CONDITION, MODEL
from tests.modules import responder_module
from vidchat.batch import ChunkBatch, ConditionValues
from vidchat.data.loading.batches import pad
from vidchat.data.loading.endless import Draw, EndlessDataModule, in_order
from vidchat.data.loading.order import Order
from vidchat.runtime.errors import user_errors
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.tokenizers.text import ByteTokenizer
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings
from vidchat.training.tokenizer_audio import AudioCodecModule
from vidchat.training.tokenizer_video import VideoTokenizerModule

STAGES = ("tokenizer_video", "tokenizer_audio", "pretrain_visual", "pretrain_av", "sft_dyadic")
TOKENIZERS = STAGES[:2]
LENGTHS = (12, 2, 5, 1, 7, 3, 2, 9)  # chunks of the answers
BATCH, STEPS, SAVED = 2, 5, 3


class Data(EndlessDataModule):
    """Items that are functions of their number; three batches for validation, which two ranks cannot share evenly."""

    def __init__(self, make: Callable[[list[Draw]], Any], batch_size: int) -> None:
        super().__init__(batch_size, seed=3)
        self.train = make, Order.shuffled(self.seed, len(LENGTHS))
        self.val = make, in_order(range(5), 2)


def answers(dyadic: bool, draws: list[Draw]) -> ChunkBatch:
    drawn = [torch.Generator().manual_seed(item) for item, _ in draws]
    lengths = [LENGTHS[item] for item, _ in draws]
    latents, mask = pad([torch.randn(t + 1, 4, 2, 2, generator=g) for t, g in zip(lengths, drawn, strict=True)])
    codes = pad([torch.randint(16, (t, 8, 2), generator=g) for t, g in zip(lengths, drawn, strict=True)])[0]
    texts = [torch.randint(256, (t,), generator=g) for t, g in zip(lengths, drawn, strict=True)]
    conditions, heard_latents, heard_codes = {"text": ConditionValues(*pad(texts))}, None, None
    if dyadic:
        heard_latents = torch.stack([torch.randn(2, 4, 2, 2, generator=g) for g in drawn])
        heard_codes = torch.stack([torch.randint(16, (2, 8, 2), generator=g) for g in drawn])
    return batches.answers(latents, codes, mask[:, 1:], heard_latents, heard_codes, conditions)


def frames(draws: list[Draw]) -> dict[str, Tensor]:
    """Bright squares that move over coloured grounds."""
    clips = []
    for item, _ in draws:
        generator = torch.Generator().manual_seed(item)
        clip = torch.randint(0, 200, (1, 3, 1, 1), generator=generator).expand(5, -1, 16, 16).clone()
        for n, frame in enumerate(clip):
            frame[:, item % 8 : item % 8 + 4, n + 2 : n + 6] = 255
        clips.append((clip + torch.randint(0, 20, clip.shape, generator=generator)).clamp(max=255).to(torch.uint8))
    return {"frames": torch.stack(clips)}


def waveforms(draws: list[Draw]) -> dict[str, Tensor]:
    """Tones in noise: of a silent band the logarithm, and so the loss, would be of rounding errors."""
    times, drawn = torch.arange(1600) / 4000, [torch.Generator().manual_seed(item) for item, _ in draws]
    tones = [torch.sin(6.28 * (200 + 90 * item) * times) for item, _ in draws]
    noise = [torch.randn(1600, generator=generator) for generator in drawn]
    return {"waveform": 0.2 * torch.stack(tones) + 0.1 * torch.stack(noise)}


def build(stage: str, batch_size: int) -> tuple[TrainingModule, Data]:
    """A stage's module and its data; where the module does not seed its weights, each rank draws others."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")))
    settings = OptimizerSettings(lr=3e-3, steps=STEPS, warmup=1, ema_decay=0.9)
    video = StackedVAE(channels=4, patch=4, widths=[8, 8], encoder_blocks=[1, 1], decoder_blocks=[1, 1])
    if stage == "tokenizer_video":
        module: TrainingModule = VideoTokenizerModule(
            video, settings, noise=0.0, window=None, start_batches=2, statistics_batches=2
        )
        return module, Data(frames, batch_size)
    audio = StftCodec(
        sample_rate=4000, hop=80, window=320, code_width=8, width=16, encoder_blocks=1, decoder_blocks=1, codebooks=2,
        vocabulary=16, kernel=3,
    )  # fmt: skip
    if stage == "tokenizer_audio":
        for level in audio.quantizer.levels:
            level.decay = 0.2  # so that entries die within a few steps
        return AudioCodecModule(audio, settings, plain_steps=2, recent_vectors=64), Data(waveforms, batch_size)
    dyadic = stage == "sft_dyadic"
    condition = CONDITION | {"text": "answer", "initiator": dyadic, "voice": False, "scores": []}
    model = OmegaConf.create(MODEL | ({"depth": None} if stage == "pretrain_visual" else {}))
    tools = video, audio, ByteTokenizer()
    options = {name: getattr(settings, name) for name in ("lr", "steps", "warmup", "ema_decay")}
    responder = responder_module(model, condition, 25, 0, *tools, optimizer=options)
    return responder, Data(lambda draws: answers(dyadic, draws), batch_size)


class Watch(L.Callback):
    """What there was after each step; a checkpoint after some; and a death in the middle of another."""

    def __init__(self, save: Path | None = None, die_at: int | None = None) -> None:
        self.save, self.die_at = save, die_at
        self.seen: dict[str, list[Any]] = {"weights": [], "loss": [], "norm": []}

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if self.die_at == trainer.global_step and trainer.global_rank == 1:
            os._exit(17)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self.seen["weights"].append(flat(pl_module))
        self.seen["loss"].append(float(trainer.callback_metrics["train/loss"]))
        self.seen["norm"].append(float(trainer.callback_metrics["train/grad_norm"]))
        if self.save is not None and trainer.global_step == SAVED:
            trainer.save_checkpoint(self.save)


def flat(module: L.LightningModule) -> Tensor:
    """All that a module remembers: weights, buffers and averages."""
    assert isinstance(module, TrainingModule)
    values = [*module.state_dict().values(), *module.ema.average.values()]
    return torch.cat([value.detach().double().flatten() for value in values])


def run(stage: str, directory: Path, ranks: int, steps: int = STEPS, **options: Any) -> dict[str, Any]:
    """Trains a stage; what there was after each step, in the end, and the validation's loss.

    One process sees what two ranks see: of the responder's stages in two batches that it accumulates, which draw what
    the ranks draw, of the tokenizers' in a batch of twice the size.
    """
    accumulated = 2 if ranks == 1 and stage not in TOKENIZERS else 1
    module, data = build(stage, BATCH * 2 if ranks == 1 and stage in TOKENIZERS else BATCH)
    resume = options.pop("resume", None)
    watch = Watch(**options)
    trainer = L.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto", max_steps=steps, max_epochs=-1,
        accumulate_grad_batches=accumulated, val_check_interval=steps * accumulated, check_val_every_n_epoch=None,
        num_sanity_val_steps=0, log_every_n_steps=1, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False, use_distributed_sampler=False, logger=False,
        default_root_dir=str(directory), callbacks=[watch],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    validated = trainer.callback_metrics.get("val/loss", torch.tensor(torch.nan))  # a resumed run counts otherwise
    return watch.seen | {"end": flat(module), "val": float(validated)}


def wait_for(path: Path, seconds: float = 120) -> Path:
    """A file that another process writes."""
    until = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} was not written")
        time.sleep(0.05)
    return path


def other_signs(eigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """What another machine may give: the same directions, seen from behind."""

    def turned(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = eigh(matrix)
        return values, -vectors

    return turned


def main(directory: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(1)
    if rank == 1:
        torch.linalg.eigh = other_signs(torch.linalg.eigh)  # type: ignore[misc]
    seen = {stage: run(stage, directory, 2, save=directory / f"{stage}_two.ckpt") for stage in STAGES}
    seen["resumed"] = run("pretrain_av", directory, 2, resume=wait_for(directory / "alone.ckpt"))
    torch.save(seen, directory / f"rank_{rank}.pt")
    began = time.monotonic()
    try:
        with user_errors():
            run("pretrain_visual", directory, 2, die_at=1)
    finally:
        (directory / f"survivor_{rank}.txt").write_text(f"{time.monotonic() - began}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
