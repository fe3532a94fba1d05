"""The stage `tokenizer_audio`: trains the small codec on the audio of clips.

A run has three phases: training without the quantiser; k-means, which initialises every codebook from the encoder's
vectors of recent audio (SoundStream, arXiv 2107.03312, section III-C, uses the first batch); and training with the
quantiser. With the quantiser from a random start, the codes collapse within fifty steps.
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from vidchat.runtime.distributed import gather_over_ranks
from vidchat.tokenizers.quantizer import code_use
from vidchat.tokenizers.stft_codec import StftCodec
from vidchat.training.module import TrainingModule
from vidchat.training.schedule import OptimizerSettings
from vidchat.training.spectral import SpectralDistance, low_pass


class AudioCodecModule(TrainingModule):
    """Trains an `StftCodec` on spectral distances and commitment.

    Attributes:
        network: The codec.
        recent: (N, D) buffer of the encoder's last vectors on all ranks, for k-means. The checkpoint holds it with
            `seen` and `quantizing`, so that a run resumed before k-means equals the uninterrupted run.
    """

    network: StftCodec
    recent: Tensor
    seen: Tensor
    quantizing: Tensor

    def __init__(
        self,
        codec: StftCodec,
        optimizer: OptimizerSettings | None = None,
        seed: int = 0,
        plain_steps: int = 500,
        stft_weight: float = 1.0,
        mel_weight: float = 1.0,
        commitment_weight: float = 1.0,
        recent_vectors: int = 8192,
        half_precision: bool = True,
    ) -> None:
        """
        Args:
            codec: Codec to train.
            optimizer: Settings of the optimizer.
            seed: Seed of all randomness in training.
            plain_steps: Optimizer steps before k-means; 0 keeps the codebooks, to train a codec further.
            stft_weight: Weight of the distance of spectra.
            mel_weight: Weight of the distance of mel spectra.
            commitment_weight: Weight of the commitment loss.
            recent_vectors: Number N of vectors for k-means.
            half_precision: Whether the weights are exported in half precision.
        """
        super().__init__(codec, optimizer, seed)
        self.distance = SpectralDistance(codec.sample_rate)
        self.plain_steps, self.half_precision = plain_steps, half_precision
        self.weights = {"stft": stft_weight, "mel": mel_weight, "commitment": commitment_weight}
        self.register_buffer("recent", torch.zeros(recent_vectors, codec.config()["code_width"]))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("quantizing", torch.tensor(plain_steps == 0))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss`, its parts and the use of the codebooks, as scalars, for a batch of `waveform` (B, n*hop)."""
        waveform = batch["waveform"]
        if self.training and not self.quantizing and self.global_step >= self.plain_steps:
            self._start_quantizing()
        vectors = self.network.embed(waveform)
        if self.quantizing:
            quantized = self.network.quantizer(vectors)
            parts = self._distances(self.network.synthesise(quantized.vectors), waveform)
            parts["commitment"] = quantized.commitment
            metrics = self._code_use(quantized.codes)
        else:
            parts = self._distances(self.network.synthesise(vectors), waveform)
            metrics = {}
            if self.training:
                self._remember(vectors.detach())
        if not self.training:
            reference = low_pass(waveform, self.network.sample_rate, 4000)
            metrics |= {f"{name}_of_4khz": value for name, value in self._distances(reference, waveform).items()}
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts, **metrics}

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes the codec with its averaged weights."""
        with self.ema.swapped():
            self.network.save(directory, torch.float16 if self.half_precision else None)

    @torch.no_grad()
    def reconstruct(self, waveform: Tensor) -> Tensor:
        """Returns the round trip (B, n*hop) of a waveform (B, n*hop) in the present phase, by the averaged weights."""
        with self.ema.swapped():
            vectors = self.network.embed(waveform)
            if self.quantizing:
                vectors = self.network.quantizer.decode(self.network.quantizer.encode(vectors))
            return self.network.synthesise(vectors)

    def _distances(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        stft, mel = self.distance(output, target)
        return {"stft": stft, "mel": mel}

    def _code_use(self, codes: Tensor) -> dict[str, Tensor]:
        used, perplexity = code_use(codes, self.network.vocabulary)
        counts = {f"codes_used_{k}": count.float() for k, count in enumerate(used)}
        return counts | {f"perplexity_{k}": value for k, value in enumerate(perplexity)}

    def _remember(self, vectors: Tensor) -> None:
        """Overwrites the oldest remembered vectors with vectors (B, n, D) and those of all other ranks.

        Vectors that are not finite are left out, since they would spoil k-means.
        """
        flat = gather_over_ranks(vectors.flatten(0, 1).float())[: len(self.recent)]
        index = (self.seen + torch.arange(len(flat), device=flat.device)) % len(self.recent)
        self.recent[index] = torch.where(flat.isfinite().all(1, keepdim=True), flat, self.recent[index])
        self.seen += len(flat)

    def _start_quantizing(self) -> None:
        self.network.quantizer.initialize(self.recent[: min(int(self.seen), len(self.recent))])
        self.quantizing.fill_(True)


class AudioSamples(L.Callback):
    """Writes a waveform and its round trip every N steps, as files and to TensorBoard and wandb."""

    def __init__(self, every: int) -> None:
        """
        Args:
            every: Optimizer steps between samples.
        """
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AudioCodecModule)
        if trainer.fit_loop._should_accumulate() or trainer.global_step % self.every or not trainer.is_global_zero:
            return
        waveform = batch["waveform"][:1]
        for name, audio in {"true": waveform, "codec": pl_module.reconstruct(waveform)}.items():
            self._write(trainer, name, audio[0].float().cpu(), pl_module.network.sample_rate)

    def _write(self, trainer: L.Trainer, name: str, audio: Tensor, sample_rate: int) -> None:
        path = Path(trainer.default_root_dir) / "sounds" / f"{trainer.global_step:07d}_{name}.wav"
        write_wav(path, audio, sample_rate)
        for logger in trainer.loggers:
            board = getattr(logger, "experiment", None)
            if hasattr(logger, "log_audio"):  # wandb
                logger.log_audio(f"sound/{name}", [str(path)], step=trainer.global_step)
            elif board is not None and hasattr(board, "add_audio"):  # TensorBoard
                board.add_audio(f"sound/{name}", audio, trainer.global_step, sample_rate)


def write_wav(path: Path, audio: Tensor, sample_rate: int) -> None:
    """Writes audio (samples,) in [-1, 1] as a 16-bit mono wav file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = (audio.clamp(-1, 1) * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.numpy().tobytes())
