"""The stage `tokenizer_audio`: trains the small codec on the audio of clips.

Three phases in one run. First without the quantiser, so that there is something worth quantising; then k-means sets
every codebook to what the encoder makes of recent audio (SoundStream, arXiv 2107.03312, section III-C, does so on the
first batch); then with the quantiser. From a random start, straight through, the codes collapse within fifty steps.
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
    """Trains a codec of our own on spectral distances and commitment.

    Attributes:
        network: The codec.
        recent: (N, D) buffer, the encoder's last vectors on all ranks, for k-means. In the checkpoint with `seen` and
            `quantizing`, so that a run resumed just before k-means does what one that never stopped does.
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
            codec: What to train.
            optimizer: See `TrainingModule`.
            seed: See `TrainingModule`.
            plain_steps: Optimizer steps before k-means; 0 uses the codebooks as they are, to train a codec further.
            stft_weight: Of the distance of spectra.
            mel_weight: Of the distance of mel spectra.
            commitment_weight: Of the pull of the encoder's vectors to the codebooks' entries.
            recent_vectors: N, how many vectors k-means is given.
            half_precision: Exports the weights in half precision, for a small file.
        """
        super().__init__(codec, optimizer, seed)
        self.distance = SpectralDistance(codec.sample_rate)
        self.plain_steps, self.half_precision = plain_steps, half_precision
        self.weights = {"stft": stft_weight, "mel": mel_weight, "commitment": commitment_weight}
        self.register_buffer("recent", torch.zeros(recent_vectors, codec.config()["code_width"]))
        self.register_buffer("seen", torch.tensor(0))
        self.register_buffer("quantizing", torch.tensor(plain_steps == 0))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch: `waveform` (B, n*hop) -> `loss`, its parts, and how much of the codebooks is in use."""
        waveform = batch["waveform"]
        if self.training and not self.quantizing and self.global_step >= self.plain_steps:
            self._start_quantizing()
        vectors = self.network.embed(waveform)
        if self.quantizing:
            quantized = self.network.quantizer(vectors)
            parts = self._distances(self.network.synthesise(quantized.vectors), waveform)
            parts["commitment"] = quantized.commitment
            watched = self._code_use(quantized.codes)
        else:
            parts = self._distances(self.network.synthesise(vectors), waveform)
            watched = {}
            if self.training:
                self._remember(vectors.detach())
        if not self.training:
            reference = low_pass(waveform, self.network.sample_rate, 4000)
            watched |= {f"{name}_of_4khz": value for name, value in self._distances(reference, waveform).items()}
        loss = torch.stack([self.weights[name] * value for name, value in parts.items()]).sum()
        return {"loss": loss, **parts, **watched}

    def export(self, directory: Path, config: dict[str, Any]) -> None:
        """Writes the codec with its averaged weights."""
        with self.ema.swapped():
            self.network.save(directory, torch.float16 if self.half_precision else None)

    @torch.no_grad()
    def reconstruct(self, waveform: Tensor) -> Tensor:
        """The round trip of a waveform (B, n*hop) as the phase of training has it, with the averaged weights."""
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
        """Writes vectors (B, n, D), and those of all other ranks, over the oldest remembered ones.

        Vectors that are not finite are left out, as they would be of k-means for ever.
        """
        flat = gather_over_ranks(vectors.flatten(0, 1).float())[: len(self.recent)]
        places = (self.seen + torch.arange(len(flat), device=flat.device)) % len(self.recent)
        self.recent[places] = torch.where(flat.isfinite().all(1, keepdim=True), flat, self.recent[places])
        self.seen += len(flat)

    def _start_quantizing(self) -> None:
        self.network.quantizer.initialize(self.recent[: min(int(self.seen), len(self.recent))])
        self.quantizing.fill_(True)


class AudioSamples(L.Callback):
    """Writes a piece of audio and its round trip every N steps, as files and to TensorBoard and wandb."""

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
