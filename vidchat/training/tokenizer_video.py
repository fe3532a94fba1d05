"""The stage `tokenizer_video`: trains a video tokenizer on the frames of clips.

During training the latents are normalised by their running statistics, and noise is added before they are decoded: a
fixed variance in place of a learned one, as in LatentLM's sigma-VAE (Sun et al., arXiv 2412.08635), so that no channel
collapses and the decoder tolerates a generator's errors. The reconstruction loss has absolute differences of pixels,
of edges at several scales (a perceptual term without a pretrained network), and squared differences of motion.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vidchat.runtime.atomic import atomic_file
from vidchat.runtime.distributed import rank_count, sum_over_ranks
from vidchat.tokenizers.stacked import StackedVAE
from vidchat.tokenizers.video import LatentStatistics, VideoTokenizer
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings


class VideoTokenizerModule(TrainingModule):
    """Trains a video tokenizer, and at the end measures its latents' statistics, which are stored with the weights."""

    network: VideoTokenizer

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        optimizer: OptimizerSettings | None = None,
        seed: int = 0,
        noise: float = 0.25,
        edge_weight: float = 1.0,
        motion_weight: float = 40.0,
        moving_weight: float = 10.0,
        window: int | None = None,
        start_batches: int = 48,
        start_motion: float = 2.0,
        statistics_batches: int = 128,
        momentum: float = 0.01,
        half_precision: bool = True,
    ) -> None:
        """
        Args:
            tokenizer: Video tokenizer to train.
            optimizer: Settings of the optimizer.
            seed: Seed of all randomness in training.
            noise: Maximum standard deviation of the noise on normalised latents; drawn from U(0, noise) per clip.
            edge_weight: Weight of the differences of edges.
            motion_weight: Weight of the squared differences of motion from frame to frame. They are squared because
                noise on the latents moves every block a little, and absolute differences would reward stillness.
            moving_weight: Additional weight of a pixel per unit of difference from its clip's mean: mouths and eyes are
                small, but they move.
            window: Side in pixels of the windows cut out of most frames; `None` to train on complete frames.
            start_batches: Number of steps whose batches give the principal components that a `StackedVAE` starts from;
                0 to start from its weights.
            start_motion: Weight of motion in the choice of these components; see `StackedVAE.start_from`.
            statistics_batches: Number of steps over whose batches the latents' statistics are measured.
            momentum: Momentum of the running statistics.
            half_precision: Whether the weights are exported in half precision.
        """
        super().__init__(tokenizer.train(), optimizer, seed)
        self.noise, self.moving_weight = noise, moving_weight
        self.edge_weight, self.motion_weight = edge_weight, motion_weight
        self.start_batches, self.start_motion, self.statistics_batches = start_batches, start_motion, statistics_batches
        self.window = window
        self.momentum, self.half_precision = momentum, half_precision

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss`, its parts and `psnr` in dB with noise, as scalars, for `frames` (B, 4T+1, 3, H, W) uint8."""
        frames = to_frames(batch["frames"])
        if self.training and self.window is not None:
            frames = self._cut(frames, self.window)
        raw = self.network.encode_raw(frames).float()
        if self.training:
            self._follow(raw.detach())
        latents = self.network.normalise(raw)
        level = self.noise * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
        noisy = latents + level * torch.randn_like(latents)
        output = self.network.decode_raw(self.network.denormalise(noisy)).float()
        error = output - frames
        parts = {
            "pixels": (self._importance(frames) * error.abs()).mean(),
            "edges": edge_distance(error),
            "motion": error.diff(dim=2).square().mean(),
        }
        loss = parts["pixels"] + self.edge_weight * parts["edges"] + self.motion_weight * parts["motion"]
        return {"loss": loss, **parts, "psnr": psnr(output.clamp(-1, 1), frames)}

    def _cut(self, frames: Tensor, window: int) -> Tensor:
        """Cuts a window at a random position of the latent grid, one for a batch; keeps one batch in four complete.

        Small windows are faster, and most of them hold the middle of the frame, where the face is.
        """
        if torch.rand(()) < 0.25:
            return frames
        stride = self.network.spatial_stride
        for dim in (3, 4):
            positions = (frames.shape[dim] - window) // stride + 1
            first = stride * int(torch.randint(max(positions, 1), ()))
            frames = frames.narrow(dim, first, min(window, frames.shape[dim]))
        return frames

    def _follow(self, raw: Tensor) -> None:
        """Moves the tokenizer's statistics towards those of a batch's latents, of all ranks' batches together.

        Statistics of one batch would remove its own mean colours, which few clips share. Latents that are not finite
        are ignored, as their gradient is.
        """
        mean = raw.mean((0, 2, 3, 4))
        power = (raw - self.network.latents_mean.view(1, -1, 1, 1, 1)).square().mean((0, 2, 3, 4))
        mean, power = sum_over_ranks(torch.stack([mean, power])) / rank_count()
        finite = (mean.isfinite() & power.isfinite()).all()
        std = self.network.latents_std.square().lerp(power, self.momentum).sqrt()
        self.network.latents_std.copy_(torch.where(finite, std, self.network.latents_std))
        mean = self.network.latents_mean.lerp(mean, self.momentum)
        self.network.latents_mean.copy_(torch.where(finite, mean, self.network.latents_mean))

    def _importance(self, frames: Tensor) -> Tensor:
        """Returns weights (B, 1, n, H, W) of pixels, 1 where nothing moves."""
        return 1 + self.moving_weight * (frames - frames.mean(2, keepdim=True)).abs().mean(1, keepdim=True)

    def on_train_start(self) -> None:
        """Starts a new `StackedVAE` from the principal components of the first batches, the same on every rank.

        Weights were made equal on all ranks before this hook, so it must do the same on all.
        """
        super().on_train_start()
        if self.global_step == 0 and self.start_batches and isinstance(self.network, StackedVAE):
            self.network.start_from(self._clips(self.start_batches), self.start_motion)
            self.ema.reset()

    def on_train_end(self) -> None:
        """Measures the statistics of the averaged weights' latents."""
        super().on_train_end()
        with self.ema.swapped():
            self.network.set_statistics(*self._statistics())

    @torch.no_grad()
    def _statistics(self) -> tuple[Tensor, Tensor]:
        statistics = LatentStatistics(self.network.channels)
        for frames in self._clips(self.statistics_batches):
            statistics.update(self.network.encode_raw(frames))
        return statistics.mean_and_std(self.device)

    def _clips(self, steps: int) -> Iterator[Tensor]:
        """Yields this rank's share of the first training batches of some steps, independently of training itself."""
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        for batch in islice(loader, steps * self.trainer.accumulate_grad_batches):
            yield to_frames(batch["frames"]).to(self.device)

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes the tokenizer with its averaged weights and its latents' statistics."""
        with self.ema.swapped():
            self.network.save(directory, torch.float16 if self.half_precision else None)


class FrameSamples(L.Callback):
    """Writes frames above their round trip every N steps, as a file and to TensorBoard and wandb."""

    def __init__(self, every: int, columns: int = 9) -> None:
        """
        Args:
            every: Optimizer steps between samples.
            columns: Frames shown of the batch's first clip.
        """
        self.every, self.columns = every, columns

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, VideoTokenizerModule)
        if trainer.fit_loop._should_accumulate() or trainer.global_step % self.every or not trainer.is_global_zero:
            return
        frames = to_frames(batch["frames"][:1])
        with torch.no_grad(), pl_module.ema.swapped():
            network = pl_module.network
            output = network.decode(network.normalise(network.encode_raw(frames).float())).float()
        self._write(trainer, torch.cat([frames, output], dim=3)[0, :, : self.columns])

    def _write(self, trainer: L.Trainer, frames: Tensor) -> None:
        """Writes and logs frames (3, n, H, W) side by side."""
        sheet = ((torch.cat(list(frames.unbind(1)), dim=2) + 1) * 127.5).round().byte().cpu()
        path = Path(trainer.default_root_dir) / "frames" / f"{trainer.global_step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(file, format="PNG")
        for logger in trainer.loggers:
            board = getattr(logger, "experiment", None)
            if hasattr(logger, "log_image"):  # wandb
                logger.log_image("frames", [str(path)], step=trainer.global_step)
            elif board is not None and hasattr(board, "add_image"):  # TensorBoard
                board.add_image("frames", sheet, trainer.global_step)


def to_frames(frames: Tensor) -> Tensor:
    """Returns frames (B, n, 3, H, W) uint8 as (B, 3, n, H, W) float in [-1, 1]."""
    return frames.transpose(1, 2).float() / 127.5 - 1


def edge_distance(error: Tensor, scales: int = 3) -> Tensor:
    """Returns the mean absolute spatial gradient of an error (B, 3, n, H, W), a scalar averaged over halving scales.

    The gradient of the error is the difference of both frames' gradients (Mathieu et al., arXiv 1511.05440,
    equation 6, with alpha = 1).
    """
    frames = error.flatten(1, 2)
    total = error.new_zeros(())
    for scale in range(scales):
        frames = F.avg_pool2d(frames, 2) if scale else frames
        total = total + frames.diff(dim=-1).abs().mean() + frames.diff(dim=-2).abs().mean()
    return total / scales


def psnr(output: Tensor, frames: Tensor) -> Tensor:
    """Returns the scalar peak signal-to-noise ratio in dB of frames in [-1, 1], two tensors of one shape."""
    return 10 * torch.log10(4 / (output - frames).square().mean().clamp_min(1e-10))
