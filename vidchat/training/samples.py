"""Answers generated during training, as clips to watch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
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
from vidchat.generation.conversation import Conversation, GeneratedChunk, GenerationSettings
from vidchat.model.generation_state import Chunk
from vidchat.training.responder_module import ResponderModule

log = logging.getLogger(__name__)


class Samples(L.Callback):
    """Generates the responder in the first validation dialogues with the averaged weights, at an interval of steps.

    The initiator's chunks are heard at their steps, and the responder is generated at the steps of its own turns.
    Writes `step_NNNNNNNN_K.mp4` for each dialogue, the responder's turns one after another, and once `truth_K.mp4`, the
    tokenizers' round trip of the true turns. Logs the clips to Weights & Biases as files, and to TensorBoard as a sheet
    of frames (sample above, truth below) and audio.

    Args:
        directory: Folder of the clips.
        every: Optimizer steps between samples; 0 for none.
        clips: Number of dialogues, at most a validation batch.
        fps: Frames per second.
        settings: Settings of generation; turns are as long as the true ones.
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
        codec = audio_codec if module.responder.depth is not None else None
        dialogues = [batch.map(itemgetter(slice(k, k + 1))) for k in range(batch.size)]
        settings, was_training = replace(self.settings, ends=False), module.training
        made = []
        with module.ema.swapped(), torch.compiler.set_stance("force_eager"):  # generation has other shapes
            module.eval()
            for dialogue in dialogues:
                conversation = Conversation(module.responder, video_vae, codec, dialogue, settings)
                made.append(_joined(list(replay(conversation, dialogue))))
            module.train(was_training)
        paths = []
        for k, (frames, waveform) in enumerate(made):
            path = self.directory / f"step_{trainer.global_step:08d}_{k}.mp4"
            self._write(path, frames, waveform, audio_codec.sample_rate)
            true_frames, true_waveform = round_trip(dialogues[k], module)
            truth = self.directory / f"truth_{k}.mp4"
            if not truth.exists():
                self._write(truth, true_frames, true_waveform, audio_codec.sample_rate)
            sheet = contact_sheet(frames, true_frames)
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


def replay(conversation: Conversation, dialogue: ChunkBatch) -> Iterator[GeneratedChunk]:
    """Generates the responder's chunks of a dialogue, step by step, while the initiator's are heard.

    Args:
        conversation: A new conversation with `settings.ends` off, started from the dialogue.
        dialogue: A batch of one dialogue; of the responder's columns, only the stills are read.
    """
    said = {int(step): k for k, step in enumerate(dialogue.steps[0]) if dialogue.mask[0, k]}
    heard = _heard_steps(dialogue)
    for step in range(max(said)):
        now, following = said.get(step), said.get(step + 1)
        begins = step > 0 and now is not None and bool(dialogue.stills[0, now])
        speaking = following is not None and not bool(dialogue.stills[0, following])
        still = dialogue.latents[:, now] if begins else None
        chunk = conversation.tick(heard.get(step), speaking, still)
        if chunk is not None:
            yield chunk


def _heard_steps(dialogue: ChunkBatch) -> dict[int, Chunk]:
    """The initiator's chunks of one dialogue by their steps."""
    if dialogue.heard_steps is None:
        return {}
    assert dialogue.heard_video is not None, "set with heard_steps"
    assert dialogue.heard_audio is not None, "set with heard_steps"
    seen, audible = dialogue.heard_video[0], dialogue.heard_audio[0]
    return {
        int(dialogue.heard_steps[0, k]): Chunk(
            dialogue.heard_latents[:, k] if dialogue.heard_latents is not None and seen[k] else None,
            dialogue.heard_codes[:, k] if dialogue.heard_codes is not None and audible[k] else None,
        )
        for k in (seen | audible).nonzero().flatten().tolist()
    }


def _joined(chunks: list[GeneratedChunk]) -> tuple[Tensor, Tensor | None]:
    """Joins chunks of one dialogue to frames (n, 3, H, W) uint8 and a waveform (samples,) or `None`."""
    waveforms = [chunk.waveform for chunk in chunks if chunk.waveform is not None]
    frames = to_bytes(torch.cat([chunk.frames[0] for chunk in chunks], dim=1)).transpose(0, 1)
    return frames, torch.cat(waveforms, dim=1)[0].float().cpu() if waveforms else None


@torch.no_grad()
def round_trip(dialogue: ChunkBatch, module: ResponderModule) -> tuple[Tensor, Tensor | None]:
    """Returns the tokenizers' round trip of the true turns of one dialogue, the ceiling of a sample's quality.

    Returns:
        Frames (n, 3, H, W) uint8 of the turns, without their stills, and a waveform (samples,) or `None`.
    """
    count = int(dialogue.mask[0].sum())
    stills = dialogue.stills[0, :count].nonzero().flatten().tolist()
    frames, waveforms = [], []
    for first, end in zip(stills, [*stills[1:], count], strict=True):
        if end > first + 1:  # else it is the reference, before a turn that has a still of its own
            latents = dialogue.latents[:, first:end].transpose(1, 2)
            frames.append(to_bytes(module.video_vae.decode(latents)[0, :, 1:]).transpose(0, 1))
            if dialogue.codes is not None and module.responder.depth is not None:
                codes = dialogue.codes[:, first + 1 : end].flatten(1, 2)
                waveforms.append(module.audio_codec.decode(codes)[0].float().cpu())
    return torch.cat(frames), torch.cat(waveforms) if waveforms else None


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
