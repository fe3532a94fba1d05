"""Answers generated during training, as clips to watch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from vidchat.batch import ChunkBatch
from vidchat.data.media.pixels import to_bytes
from vidchat.data.media.write import write_clip
from vidchat.generation.stream import GenerationSettings, stream_answer
from vidchat.training.responder_module import ResponderModule

log = logging.getLogger(__name__)


class Samples(L.Callback):
    """Generates answers to the first validation clips with the averaged weights, at an interval of optimizer steps.

    Writes `step_NNNNNNNN_K.mp4` for each and, once, `truth_K.mp4`, the tokenizers' round trip of the true answer. Logs
    the clips to Weights & Biases as files, and to TensorBoard as a sheet of frames (sample above, truth below) and
    audio.

    Args:
        directory: Folder of the clips.
        every: Optimizer steps between samples; 0 for none.
        clips: Number of answers, at most a validation batch.
        fps: Frames per second.
        settings: Settings of generation; answers are no longer than the true ones.
    """

    def __init__(self, directory: str | Path, every: int, clips: int, fps: int, settings: GenerationSettings) -> None:
        self.directory, self.every, self.clips, self.fps = Path(directory), every, clips, fps
        self.settings = settings
        self._batch: ChunkBatch | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        due = self.every and step % self.every == 0 and not trainer.fit_loop._should_accumulate()
        if due and not trainer.should_stop and trainer.is_global_zero:
            assert isinstance(pl_module, ResponderModule)
            self.sample(trainer, pl_module)

    @rank_zero_only
    def sample(self, trainer: L.Trainer, module: ResponderModule) -> list[Path]:
        """Generates, writes and logs the clips; returns their paths."""
        batch = self._first(trainer)
        if batch is None:
            return []
        batch = batch.to(module.device)
        video_vae, audio_codec = module.video_vae.to(module.device), module.audio_codec.to(module.device)
        chunks = min(self.settings.chunks, batch.latents.shape[1] - 1)
        settings = GenerationSettings(chunks, self.settings.window, self.settings.seed, self.settings.sampling)
        was_training = module.training
        with module.ema.swapped(), torch.compiler.set_stance("force_eager"):  # generation has other shapes
            module.eval()
            codec = audio_codec if module.responder.depth is not None else None
            answer = list(stream_answer(module.responder, video_vae, codec, batch, settings))
            module.train(was_training)
        frames = to_bytes(torch.cat([chunk.frames for chunk in answer], dim=2)).transpose(1, 2)
        audio = None
        if codec is not None:
            audio = torch.cat([chunk.waveform for chunk in answer if chunk.waveform is not None], dim=1).float().cpu()
        true_frames, true_audio = round_trip(batch, module, chunks)
        paths = []
        for k in range(batch.size):
            path = self.directory / f"step_{trainer.global_step:08d}_{k}.mp4"
            waveform = None if audio is None else audio[k]
            self._write(path, frames[k], waveform, audio_codec.sample_rate)
            truth = self.directory / f"truth_{k}.mp4"
            if not truth.exists():
                true_waveform = None if true_audio is None else true_audio[k]
                self._write(truth, true_frames[k], true_waveform, audio_codec.sample_rate)
            sheet = contact_sheet(frames[k], true_frames[k])
            _show(trainer, k, path, sheet, waveform, audio_codec.sample_rate)
            paths.append(path)
        return paths

    def _first(self, trainer: L.Trainer) -> ChunkBatch | None:
        """Returns the first validation clips, always the same; `None` if there are none."""
        if self._batch is None:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            loader = datamodule.val_dataloader()
            batch = next(iter(loader), None) if loader is not None else None
            if batch is None:
                log.warning("no validation clips to sample from; give some dialogues the split 'val'")
                self.every = 0
                return None
            self._batch = batch.first(self.clips)
        return self._batch

    def _write(self, path: Path, frames: Tensor, waveform: Tensor | None, sample_rate: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, frames, waveform, self.fps, sample_rate)


@torch.no_grad()
def round_trip(batch: ChunkBatch, module: ResponderModule, chunks: int) -> tuple[Tensor, Tensor | None]:
    """Returns the tokenizers' round trip of the true answers, the ceiling of a sample's quality.

    Returns:
        Frames (B, 4T, 3, H, W) uint8, without the reference, and waveforms (B, samples) or `None`.
    """
    latents = batch.latents[:, : chunks + 1].transpose(1, 2)
    frames = to_bytes(module.video_vae.decode(latents)[:, :, 1:]).transpose(1, 2)
    if batch.codes is None or module.responder.depth is None:
        return frames, None
    return frames, module.audio_codec.decode(batch.codes[:, :chunks].flatten(1, 2)).float().cpu()


def contact_sheet(above: Tensor, below: Tensor, columns: int = 8) -> Tensor:
    """Returns a sheet (3, 2H, columns*W) of frames of two clips (n, 3, H, W), evenly spaced in time."""
    index = torch.linspace(0, len(above) - 1, columns).round().long()
    rows = [torch.cat(list(clip[index]), dim=2) for clip in (above, below)]
    return torch.cat(rows, dim=1)


def _show(trainer: L.Trainer, k: int, path: Path, sheet: Tensor, waveform: Tensor | None, sample_rate: int) -> None:
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"sample/{k}", sheet, step)
            if waveform is not None:
                logger.experiment.add_audio(f"sample/{k}", waveform.clamp(-1, 1)[None], step, sample_rate)
        elif isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({f"sample/{k}": wandb.Video(str(path), format="mp4"), "trainer/global_step": step})
